package sys

import (
	"bytes"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Open is os.OpenFile of a file that is never waited for: regular files, directories, those of /proc and cgroupfs. It
// is one system call in the place of six, since the file is not introduced to the runtime's poller. The caller
// closes it. The error is an *os.PathError.
func Open(name string, flags int, mode uint32) (*os.File, error) {
	fd, err := open(name, flags, mode)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}

func open(name string, flags int, mode uint32) (int, error) {
	for {
		fd, err := unix.Open(name, flags|unix.O_CLOEXEC, mode)
		switch err {
		case nil:
			return fd, nil
		case unix.EINTR:
		default:
			return -1, &os.PathError{Op: "open", Path: name, Err: err}
		}
	}
}

// ReadFile is os.ReadFile of such a file.
func ReadFile(name string) ([]byte, error) {
	fd, err := open(name, unix.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	var small [512]byte // most are, and the first touch of a new page takes longer than the read
	n, eof, err := readFull(fd, name, small[:])
	if err != nil {
		return nil, err
	}
	if eof {
		return bytes.Clone(small[:n]), nil
	}
	buf := append(make([]byte, 0, 4096), small[:]...)
	for !eof {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		if n, eof, err = readFull(fd, name, buf[len(buf):cap(buf)]); err != nil {
			return nil, err
		}
		buf = buf[:len(buf)+n]
	}
	return buf, nil
}

// readFull reads until b is full or the file ends.
func readFull(fd int, name string, b []byte) (n int, eof bool, err error) {
	for n < len(b) {
		m, err := unix.Read(fd, b[n:])
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return n, false, &os.PathError{Op: "read", Path: name, Err: err}
		case m == 0:
			return n, true, nil
		}
		n += m
	}
	return n, false, nil
}

// WriteFile is os.WriteFile of such a file.
func WriteFile(name string, data []byte, mode uint32) error {
	fd, err := open(name, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC, mode)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for len(data) > 0 {
		n, err := unix.Write(fd, data)
		if err == nil && n == 0 {
			err = io.ErrShortWrite
		}
		if err != nil && err != unix.EINTR {
			return &os.PathError{Op: "write", Path: name, Err: err}
		}
		data = data[max(n, 0):]
	}
	return nil
}
