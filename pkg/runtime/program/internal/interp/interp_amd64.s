#include "textflag.h"

// func interpAddr() unsafe.Pointer
TEXT ·interpAddr(SB), NOSPLIT, $0-8
	LEAQ	·interp(SB), AX
	MOVQ	AX, ret+0(FP)
	RET

// The interpreter. It is the entry point of an image and lives in registers: R15 is the data segment's
// header, R12 the operation, BX its flags. Offsets are the package comment's, flag bits those of package program.
TEXT ·interp(SB), NOSPLIT|NOFRAME, $0-0
	MOVQ	$0x411000, R15
	LEAQ	64(R15), R12

loop:
	MOVL	56(R12), BX
	MOVQ	8(R12), DI
	MOVQ	16(R12), SI
	MOVQ	24(R12), DX
	MOVQ	32(R12), R10
	MOVQ	40(R12), R8
	MOVQ	48(R12), R9
	TESTL	$0x3f, BX // no argument is a slot
	JZ	args
	TESTL	$1, BX
	JZ	arg1
	MOVQ	(DI), DI

arg1:
	TESTL	$2, BX
	JZ	arg2
	MOVQ	(SI), SI

arg2:
	TESTL	$4, BX
	JZ	arg3
	MOVQ	(DX), DX

arg3:
	TESTL	$8, BX
	JZ	arg4
	MOVQ	(R10), R10

arg4:
	TESTL	$16, BX
	JZ	arg5
	MOVQ	(R8), R8

arg5:
	TESTL	$32, BX
	JZ	args
	MOVQ	(R9), R9

args:
	TESTL	$0x40, BX // load
	JNZ	load
	MOVQ	0(R12), AX
	SYSCALL
	CMPQ	AX, $-4095
	JCC	fail

good:
	TESTL	$0x80, BX // store
	JZ	stored
	MOVQ	72(R12), CX
	MOVQ	AX, (CX)

stored:
	TESTL	$0x100, BX // want
	JZ	wanted
	CMPQ	AX, 80(R12)
	JEQ	wanted
	TESTL	$0x200, BX // jump other
	JNZ	jump
	MOVWLZX	94(R12), AX
	JMP	die

wanted:
	TESTL	$0x400, BX // jump ok
	JNZ	jump

next:
	ADDQ	$96, R12
	JMP	loop

load:
	MOVQ	DI, AX
	ANDQ	SI, AX
	JMP	good

jump:
	MOVQ	64(R12), R12
	JMP	loop

fail:
	NEGQ	AX
	TESTL	$0x800, BX // accept any
	JNZ	accepted
	MOVWLZX	88(R12), CX
	CMPQ	AX, CX
	JEQ	accepted
	MOVWLZX	90(R12), CX
	CMPQ	AX, CX
	JEQ	accepted
	MOVWLZX	92(R12), CX
	CMPQ	AX, CX
	JEQ	accepted

die:
	MOVQ	AX, 8(R15)
	MOVL	60(R12), CX
	MOVQ	CX, 0(R15)
	MOVQ	16(R15), DI
	MOVQ	R15, SI
	MOVL	$16, DX
	MOVL	$1, AX // write
	SYSCALL
	MOVL	$125, DI
	MOVL	$231, AX // exit_group
	SYSCALL
	INT	$3

accepted:
	TESTL	$0x1000, BX // jump on errno
	JNZ	jump
	JMP	next
	QUAD	$0x2e646e652d697263 // endMark
