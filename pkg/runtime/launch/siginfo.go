package launch

import "unsafe"

// siginfo is the kernel's siginfo_t as waitid(2) fills it on 64-bit machines: si_signo, si_errno, si_code,
// padding, si_pid, si_uid, si_status.
type siginfo struct {
	head [4]int32
	si   [28]int32
}

func (s *siginfo) ptr() uintptr { return uintptr(unsafe.Pointer(s)) }

func (s *siginfo) pid() int { return int(s.si[0]) }
