package program

import "golang.org/x/sys/unix"

const (
	elfMachine   = 62 // EM_X86_64
	sysExitGroup = unix.SYS_EXIT_GROUP
)
