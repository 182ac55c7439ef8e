// Package systemd tests the cgroup driver of that name where systemd is the machine's init: hack/vm/test with
// VM_INIT=systemd builds the tests (build tag systemd) and runs them in such a guest, as root and in no namespaces of
// their own, since systemd must see their processes.
package systemd
