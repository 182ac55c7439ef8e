package oci

import (
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/cri-server/cri-server/pkg/errs"
)

// The real-time signals as the C libraries number them: the first two belong to their threads.
const (
	sigRTMin = 34
	sigRTMax = 64
)

// defaultStopSignal is what a container gets that names none.
const defaultStopSignal = "SIGTERM"

// stopSignal takes the request's signal, else the image's, else SIGTERM.
func (t *translation) stopSignal() error {
	if s := t.Config.GetStopSignal(); s != cri.Signal_SIGNAL_RUNTIME_DEFAULT {
		name, ok := cri.Signal_name[int32(s)]
		if !ok {
			return errs.New(errs.Invalid, "stop_signal: no such signal %d", s)
		}
		n, err := ParseSignal(strings.TrimPrefix(name, "SIGNAL_"))
		if err != nil {
			return errs.New(errs.Invalid, "stop_signal: %w", err)
		}
		t.out.StopSignal = SignalName(n)
		return nil
	}
	t.out.StopSignal = defaultStopSignal
	if s := t.Image.StopSignal; s != "" {
		n, err := ParseSignal(s)
		if err != nil {
			return errs.New(errs.Invalid, "image stop signal: %w", err)
		}
		t.out.StopSignal = SignalName(n)
	}
	return nil
}

// ParseSignal reads a signal by number or by name, in any case, with or without SIG: "9", "SIGTERM", "hup",
// "RTMIN+3", "SIGRTMAX-1", and the CRI's spelling "SIGRTMINPLUS3". The error is Invalid.
func ParseSignal(s string) (int, error) {
	if n, err := strconv.ParseUint(s, 10, 8); err == nil && n >= 1 && n <= sigRTMax {
		return int(n), nil
	}
	name := strings.TrimPrefix(strings.ToUpper(s), "SIG")
	if n, ok := realTime(name); ok {
		return n, nil
	}
	switch name {
	case "CLD":
		name = "CHLD"
	case "POLL":
		name = "IO"
	case "IOT":
		name = "ABRT"
	}
	if n := unix.SignalNum("SIG" + name); n != 0 {
		return int(n), nil
	}
	return 0, errs.New(errs.Invalid, "%q is no signal", s)
}

func realTime(name string) (int, bool) {
	base, sign := 0, 1
	rest, ok := strings.CutPrefix(name, "RTMIN")
	if ok {
		base = sigRTMin
		rest = strings.Replace(rest, "PLUS", "+", 1)
	} else if rest, ok = strings.CutPrefix(name, "RTMAX"); ok {
		base, sign = sigRTMax, -1
		rest = strings.Replace(rest, "MINUS", "-", 1)
	} else {
		return 0, false
	}
	if rest == "" {
		return base, true
	}
	if sign > 0 && rest[0] != '+' || sign < 0 && rest[0] != '-' {
		return 0, false
	}
	off, err := strconv.ParseUint(rest[1:], 10, 8)
	n := base + sign*int(off)
	return n, err == nil && n >= sigRTMin && n <= sigRTMax
}

// SignalName gives a signal's canonical name, the form that ParseSignal and tools read.
func SignalName(n int) string {
	switch {
	case n == sigRTMin:
		return "SIGRTMIN"
	case n == sigRTMax:
		return "SIGRTMAX"
	case n > sigRTMin && n <= sigRTMin+15:
		return fmt.Sprintf("SIGRTMIN+%d", n-sigRTMin)
	case n > sigRTMin && n < sigRTMax:
		return fmt.Sprintf("SIGRTMAX-%d", sigRTMax-n)
	}
	if name := unix.SignalName(unix.Signal(n)); name != "" {
		return name
	}
	return strconv.Itoa(n)
}

// SignalEnum gives the CRI's value for a canonical name, SIGNAL_RUNTIME_DEFAULT where it has none.
func SignalEnum(name string) cri.Signal {
	r := strings.NewReplacer("+", "PLUS", "-", "MINUS")
	return cri.Signal(cri.Signal_value["SIGNAL_"+r.Replace(name)])
}
