// Package interp holds the interpreter that every program's image starts with, in assembler for each
// architecture. It is never called: its bytes are copied into images.
//
// An interpreter knows the layout that package program writes: the data segment at 0x411000 begins with a
// header of 64 bytes (record kind, record value, report descriptor), operations of 96 bytes follow. An
// operation is: number at 0, six arguments at 8, flags at 56, index at 60, target at 64, store at 72,
// want at 80, three accepted errnos at 88, the errno for an unwanted result at 94.
package interp

import (
	"bytes"
	"unsafe"
)

// interp is the interpreter.
//
//nolint:unused // the assembler takes its address
func interp()

// interpAddr returns the address of interp.
func interpAddr() unsafe.Pointer

// endMark follows the last instruction of interp.
var endMark = [8]byte{'c', 'r', 'i', '-', 'e', 'n', 'd', '.'}

// maxSize bounds the search for the mark.
const maxSize = 1024

// Code returns the interpreter's bytes: they are the running executable's own text and must not be
// written. It returns nil when the end mark is missing.
func Code() []byte {
	text := unsafe.Slice((*byte)(interpAddr()), maxSize)
	n := bytes.Index(text, endMark[:])
	if n < 0 {
		return nil
	}
	return text[:n]
}
