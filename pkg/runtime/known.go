package runtime

import "slices"

// MountOptions are the options of a mount that have a meaning here, sorted; whatever else a mount's options
// hold goes to its filesystem.
func MountOptions() []string {
	out := []string{"bind", "rbind", "remount", "tmpcopyup", "idmap", "ridmap"}
	for _, p := range propagations {
		out = append(out, p.name, "r"+p.name)
	}
	for _, f := range flagOptions {
		if out = append(out, f.name); f.attr != 0 {
			out = append(out, "r"+f.name)
		}
	}
	for _, f := range atimeOptions { // one of them is 0 for the kernel
		out = append(out, f.name, "r"+f.name)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Capabilities are the capabilities known here, in the kernel's order.
func Capabilities() []string {
	out := make([]string, len(capNames))
	for i, n := range capNames {
		out[i] = "CAP_" + n
	}
	return out
}
