// Package network runs CNI on one network namespace: libcni, with the common plugins in process.
package network

// Pod is what a network needs to know of a pod.
type Pod struct {
	ID, Name, Namespace, UID string
	Netns                    string // a path of its network namespace, "/proc/<holder pid>/ns/net"; "" when it is gone
	Ports                    []PortMapping
	Annotations              map[string]string
}

// PortMapping sends a port of the node to a port of the pod. HostPort 0 maps nothing.
type PortMapping struct {
	HostIP        string // "" is every address
	HostPort      int32
	ContainerPort int32
	Protocol      string // "tcp", "udp" or "sctp"
}

// Result is what attaching gave: it is stored with the pod, and Detach gets it back.
type Result struct {
	IPs []string // the pod's addresses, the primary one first
}

// Status says whether pods can be attached.
type Status struct {
	Ready           bool
	Reason, Message string // why not, for the node's condition
}
