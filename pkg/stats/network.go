package stats

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// iface are the counters of one network interface.
type iface struct {
	name                                    string
	rxBytes, rxPackets, rxErrors, rxDropped uint64
	txBytes, txPackets, txErrors, txDropped uint64
}

// interfaces reads the counters of a process's network namespace, the one with the default route first and
// without loopback.
func (c *Collector) interfaces(pid int) ([]iface, error) {
	dir := filepath.Join(c.Proc, strconv.Itoa(pid), "net")
	dev, err := os.ReadFile(filepath.Join(dir, "dev"))
	if err != nil {
		return nil, err
	}
	list, err := parseNetDev(dev)
	if err != nil {
		return nil, err
	}
	v4, _ := os.ReadFile(filepath.Join(dir, "route"))
	v6, _ := os.ReadFile(filepath.Join(dir, "ipv6_route"))
	name := defaultInterface(v4, v6)
	for i := range list {
		if list[i].name == name || name == "" && list[i].name == "eth0" {
			list[0], list[i] = list[i], list[0]
			break
		}
	}
	return list, nil
}

// parseNetDev reads /proc/net/dev: two lines of headings, then "name: 8 receive and 8 transmit counters".
func parseNetDev(b []byte) ([]iface, error) {
	var out []iface
	sc := bufio.NewScanner(bytes.NewReader(b))
	for n := 0; sc.Scan(); n++ {
		if n < 2 {
			continue
		}
		name, rest, ok := strings.Cut(sc.Text(), ":")
		fields := strings.Fields(rest)
		if !ok || len(fields) < 16 {
			return nil, fmt.Errorf("net/dev: cannot read line %q", sc.Text())
		}
		if name = strings.TrimSpace(name); name == "lo" {
			continue
		}
		var v [16]uint64
		for i := range v {
			var err error
			if v[i], err = strconv.ParseUint(fields[i], 10, 64); err != nil {
				return nil, fmt.Errorf("net/dev: interface %s: %w", name, err)
			}
		}
		out = append(out, iface{
			name: name, rxBytes: v[0], rxPackets: v[1], rxErrors: v[2], rxDropped: v[3],
			txBytes: v[8], txPackets: v[9], txErrors: v[10], txDropped: v[11],
		})
	}
	return out, sc.Err()
}

// defaultInterface finds the interface of the default route in /proc/net/route, else /proc/net/ipv6_route.
func defaultInterface(v4, v6 []byte) string {
	for line := range strings.Lines(string(v4)) {
		// Iface Destination Gateway Flags RefCnt Use Metric Mask …
		if f := strings.Fields(line); len(f) >= 8 && f[1] == "00000000" && f[7] == "00000000" {
			return f[0]
		}
	}
	for line := range strings.Lines(string(v6)) {
		// destination prefix-length source prefix-length next-hop metric refcnt use flags device
		f := strings.Fields(line)
		if len(f) >= 10 && f[1] == "00" && strings.Trim(f[0], "0") == "" && f[9] != "lo" {
			return f[9]
		}
	}
	return ""
}
