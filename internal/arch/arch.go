// Package arch holds the project to ARCHITECTURE.md: its tests read the import table and the size limits there.
package arch
