# What cri-server confines containers with that name no AppArmor profile, and those that ask for RuntimeDefault. It is a second
# wall: capabilities, seccomp and masked paths stand before it. A container may use its files, its network and its fellows as it
# likes; what it may not is change the node by way of the kernel's file systems, or mount.

profile %NAME% flags=(attach_disconnected, mediate_deleted) {
  capability,
  network,
  unix,
  dbus,
  file,
  umount,

  # Who manages containers may signal them; those under this profile may signal and trace each other.
  signal (receive) peer=unconfined,
%PEER%  signal (send, receive) peer=%NAME%,
  ptrace (read, readby, trace, tracedby) peer=%NAME%,

  # No rule allows mount, remount and pivot_root. Denied by name, they do not fill the audit log either.
  deny mount,
  deny remount,
  deny pivot_root,

  # /proc: what is neither a process nor the part of sysctl that belongs to the container's namespaces (net, and of
  # kernel the System V limits).
  deny /proc/[^0-9st]** wl,
  deny /proc/{scsi,tty}/** wl,
  deny /proc/s[^ecy]* wl,
  deny /proc/sysrq-trigger rwkl,
  deny /proc/kcore rwkl,
  deny /proc/sys/[^kn]** wl,
  deny /proc/sys/kernel/[^ms]** wl,
  deny /proc/sys/kernel/m[^s]** wl,
  deny /proc/sys/kernel/s[^eh]** wl,
  deny /proc/sys/kernel/se[^m]** wl,

  # /sys: all but the container's own cgroup.
  deny /sys/[^f]** wl,
  deny /sys/f[^s]** wl,
  deny /sys/fs/[^c]** wl,
  deny /sys/fs/c[^g]** wl,
  deny /sys/firmware/** rwkl,
  deny /sys/devices/virtual/powercap/** rwkl,
  deny /sys/kernel/security/** rwkl,
}
