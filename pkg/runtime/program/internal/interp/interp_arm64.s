#include "textflag.h"

// func interpAddr() unsafe.Pointer
TEXT ·interpAddr(SB), NOSPLIT, $0-8
	MOVD	$·interp(SB), R0
	MOVD	R0, ret+0(FP)
	RET

// The interpreter. It is the entry point of an image and lives in registers: R20 is the data segment's
// header, R19 the operation, R21 its flags. Offsets are the package comment's, flag bits those of package program.
TEXT ·interp(SB), NOSPLIT|NOFRAME, $0-0
	MOVZ	$(0x41<<16), R20
	ADD	$0x1000, R20, R20
	ADD	$64, R20, R19

loop:
	MOVWU	56(R19), R21
	MOVD	8(R19), R0
	MOVD	16(R19), R1
	MOVD	24(R19), R2
	MOVD	32(R19), R3
	MOVD	40(R19), R4
	MOVD	48(R19), R5
	TBZ	$0, R21, arg1
	MOVD	(R0), R0

arg1:
	TBZ	$1, R21, arg2
	MOVD	(R1), R1

arg2:
	TBZ	$2, R21, arg3
	MOVD	(R2), R2

arg3:
	TBZ	$3, R21, arg4
	MOVD	(R3), R3

arg4:
	TBZ	$4, R21, arg5
	MOVD	(R4), R4

arg5:
	TBZ	$5, R21, args
	MOVD	(R5), R5

args:
	TBNZ	$6, R21, load
	MOVD	(R19), R8
	SVC
	CMN	$4095, R0
	BCS	fail

good:
	TBZ	$7, R21, stored
	MOVD	72(R19), R9
	MOVD	R0, (R9)

stored:
	TBZ	$8, R21, wanted
	MOVD	80(R19), R9
	CMP	R9, R0
	BEQ	wanted
	TBNZ	$9, R21, jump
	MOVHU	94(R19), R0
	B	die

wanted:
	TBNZ	$10, R21, jump

next:
	ADD	$96, R19, R19
	B	loop

load:
	AND	R1, R0, R0
	B	good

jump:
	MOVD	64(R19), R19
	B	loop

fail:
	NEG	R0, R0
	TBNZ	$11, R21, accepted
	MOVHU	88(R19), R9
	CMP	R9, R0
	BEQ	accepted
	MOVHU	90(R19), R9
	CMP	R9, R0
	BEQ	accepted
	MOVHU	92(R19), R9
	CMP	R9, R0
	BEQ	accepted

die:
	MOVD	R0, 8(R20)
	MOVWU	60(R19), R9
	MOVD	R9, 0(R20)
	MOVD	16(R20), R0
	MOVD	R20, R1
	MOVZ	$16, R2
	MOVZ	$64, R8 // write
	SVC
	MOVZ	$125, R0
	MOVZ	$94, R8 // exit_group
	SVC
	BRK

accepted:
	TBNZ	$12, R21, jump
	B	next
	WORD	$0x2d697263 // endMark
	WORD	$0x2e646e65
