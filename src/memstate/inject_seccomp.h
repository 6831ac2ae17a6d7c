/* SPDX-License-Identifier: MIT */
/*
 * Would a thread's seccomp filters let a system call pass? A filter may kill
 * the process for a call that it does not know, so they are read and run here,
 * by hand, before the call is made there.
 */
#ifndef QSTILL_MEMSTATE_INJECT_SECCOMP_H
#define QSTILL_MEMSTATE_INJECT_SECCOMP_H

#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/types.h>

#include "base/error.h"

/*
 * For a thread that has filters (inject_status.h) and is stopped under
 * ptrace. 0 when each of its filters allows (or
 * only logs) the call; PRECONDITION when one does not, or when the filters
 * cannot be read (that takes CAP_SYS_ADMIN and no filter on ourselves).
 */
int inject_seccomp_check(pid_t tid, const struct seccomp_data *call,
                         const char *name, struct qstill_error *err);

/* What one filter answers (SECCOMP_RET_*). A program that the kernel would
 * not have accepted answers SECCOMP_RET_KILL_PROCESS. No I/O. */
uint32_t inject_seccomp_run(const struct sock_filter *insns, size_t count,
                            const struct seccomp_data *call);

#endif
