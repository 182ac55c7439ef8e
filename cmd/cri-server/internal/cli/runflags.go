package cli

import (
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func setUser(sc *cri.LinuxContainerSecurityContext, user string) error {
	name, group, hasGroup := strings.Cut(user, ":")
	if uid, err := strconv.ParseUint(name, 10, 31); err == nil {
		sc.RunAsUser = &cri.Int64Value{Value: int64(uid)}
	} else {
		sc.RunAsUsername = name
	}
	if !hasGroup {
		return nil
	}
	gid, err := strconv.ParseUint(group, 10, 31)
	if err != nil {
		return fmt.Errorf("user (%q): the group is no number. Give groups by number.", user)
	}
	sc.RunAsGroup = &cri.Int64Value{Value: int64(gid)}
	return nil
}

func setVolumes(c *cri.ContainerConfig, volumes []string) error {
	for _, v := range volumes {
		parts := strings.Split(v, ":")
		if len(parts) < 2 || len(parts) > 3 || len(parts) == 3 && parts[2] != "ro" && parts[2] != "rw" {
			return fmt.Errorf("volume (%q): not of the form HOST:CONTAINER[:ro]", v)
		}
		from, err := filepath.Abs(parts[0])
		if err != nil {
			return err
		}
		c.Mounts = append(c.Mounts, &cri.Mount{HostPath: from, ContainerPath: parts[1], Readonly: len(parts) == 3 && parts[2] == "ro"})
	}
	return nil
}

func setPorts(p *cri.PodSandboxConfig, ports []string) error {
	for _, v := range ports {
		spec, proto, _ := strings.Cut(v, "/")
		n, ok := cri.Protocol_value[strings.ToUpper(proto)]
		if proto != "" && !ok {
			return fmt.Errorf("port (%q): %q is no protocol. Use tcp, udp or sctp.", v, proto)
		}
		from, to, ok := strings.Cut(spec, ":")
		host, herr := strconv.ParseUint(from, 10, 16)
		ctr, cerr := strconv.ParseUint(to, 10, 16)
		if !ok || herr != nil || cerr != nil || host == 0 || ctr == 0 {
			return fmt.Errorf("port (%q): not of the form HOST:CONTAINER[/PROTOCOL]", v)
		}
		p.PortMappings = append(p.PortMappings, &cri.PortMapping{Protocol: cri.Protocol(n), HostPort: int32(host), ContainerPort: int32(ctr)})
	}
	return nil
}
