// Package crash kills the real server at every step of its long calls, starts it again and audits what it left. It is
// a root test; what it runs are bin/cri-server and bin/cri-runtime, by way of hack/up and hack/down.
package crash
