#include "textflag.h"

// handler(DI: signal) writes one byte to ·pipe. The kernel has saved every register.
TEXT ·handler(SB),NOSPLIT|NOFRAME,$0-0
	SUBQ $8, SP
	MOVB DI, (SP)
	MOVL ·pipe(SB), DI
	MOVQ SP, SI
	MOVL $1, DX
	MOVL $1, AX // write
	SYSCALL
	ADDQ $8, SP
	RET

TEXT ·restorer(SB),NOSPLIT|NOFRAME,$0-0
	MOVL $15, AX // rt_sigreturn
	SYSCALL
	INT  $3

GLOBL ·handlerAddr(SB), RODATA, $8
DATA ·handlerAddr(SB)/8, $·handler(SB)
GLOBL ·restorerAddr(SB), RODATA, $8
DATA ·restorerAddr(SB)/8, $·restorer(SB)
