package program

import "golang.org/x/sys/unix"

const (
	elfMachine   = 183 // EM_AARCH64
	sysExitGroup = unix.SYS_EXIT_GROUP
)
