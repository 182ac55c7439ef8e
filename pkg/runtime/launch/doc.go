// Package launch starts programs: it forks the process that runs a sealed program and follows it to READY.
package launch
