// Package pods holds the whole to its promises: its tests start the executables of bin/ with hack/up, drive them over the
// CRI as a kubelet does, kill what can be killed, and end with hack/down. They need root, and `make build` before.
package pods
