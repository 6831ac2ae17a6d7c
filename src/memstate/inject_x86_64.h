/* SPDX-License-Identifier: MIT */
/* What the files inject_x86_64*.c share. */
#ifndef QSTILL_MEMSTATE_INJECT_X86_64_H
#define QSTILL_MEMSTATE_INJECT_X86_64_H

#if !defined(__x86_64__)
#error "the injection knows x86-64 only: write an inject_ARCH.c"
#endif

#include "memstate/inject_arch.h"

/* The XSAVE image (Intel SDM 1, 13.4). AMX makes it 11,008 bytes. */
#define XSAVE_SIZE_MAX 32768u
#define XSAVE_BV       512u
#define XSAVE_MIN      576u /* FXSAVE area and header */

/* PRECONDITION when the thread runs 32-bit code. */
int inject_regs_get(pid_t tid, struct user_regs_struct *regs,
                    struct qstill_error *err);

#endif
