/* SPDX-License-Identifier: MIT */
#include "inject_tracee.h"

#include <errno.h>
#include <linux/ptrace.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* A tracee takes 10 to 50 us from one stop to the next. */
#define POLL_FIRST_NS 5000
#define POLL_MAX_NS   500000

long tracee_request(int what, pid_t tid, unsigned long addr, void *data)
{
    long r = syscall(SYS_ptrace, what, tid, addr, data);

    return r < 0 ? -errno : r;
}

uint64_t tracee_now_ns(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

int tracee_attach(struct tracee *t, pid_t tid, uint64_t deadline_ns,
                  struct qstill_error *err)
{
    void *options = (void *)(uintptr_t)PTRACE_O_TRACESYSGOOD;
    long r;

    *t = (struct tracee){.tid = tid, .deadline_ns = deadline_ns};
    /* Not PTRACE_O_EXITKILL: the target must survive us. */
    r = tracee_request(PTRACE_SEIZE, tid, 0, options);
    if (r == 0)
        r = tracee_request(PTRACE_INTERRUPT, tid, 0, NULL);
    if (r == 0)
        return 0;
    if (r == -ESRCH)
        return err_set(err, QSTILL_E_BUSY, "thread %d has ended", tid);
    err_errno(err, (int)-r, "cannot trace thread %d", tid);
    return err_hint(err, "run as root or as the process' own user with "
                         "CAP_SYS_PTRACE; nobody else may be tracing it");
}

/* Which stop it is in; TRACEE_TIMEOUT when it is in none. */
static enum tracee_stop look(struct tracee *t)
{
    struct ptrace_syscall_info sys;
    siginfo_t info;
    long r;

    r = tracee_request(PTRACE_GETSIGINFO, t->tid, 0, &info);
    if (r == -ESRCH)
        return kill(t->tid, 0) < 0 && errno == ESRCH ? TRACEE_GONE
                                                     : TRACEE_TIMEOUT;
    if (r < 0)
        return TRACEE_OTHER;
    t->signal = info.si_signo;
    if (info.si_code >> 8 == PTRACE_EVENT_STOP)
        return info.si_signo == SIGTRAP ? TRACEE_TRAP : TRACEE_GROUP;
    if (info.si_signo != SIGTRAP || info.si_code != (SIGTRAP | 0x80))
        return TRACEE_SIGNAL;
    r = tracee_request(PTRACE_GET_SYSCALL_INFO, t->tid, sizeof(sys), &sys);
    if (r <= 0)
        return TRACEE_OTHER;
    t->nr = sys.op == PTRACE_SYSCALL_INFO_ENTRY ? sys.entry.nr : 0;
    if (sys.op == PTRACE_SYSCALL_INFO_ENTRY)
        return TRACEE_ENTRY;
    return sys.op == PTRACE_SYSCALL_INFO_EXIT ? TRACEE_EXIT : TRACEE_OTHER;
}

/* The next stop of any kind, or TRACEE_TIMEOUT. */
static enum tracee_stop wait_stop(struct tracee *t)
{
    struct timespec pause = {0, POLL_FIRST_NS};
    enum tracee_stop stop;
    int status;

    for (;;) {
        /* Only so that no notice stays behind, and that of its death. */
        if (waitpid(t->tid, &status, WNOHANG | __WALL | __WNOTHREAD) ==
                t->tid &&
            (WIFEXITED(status) || WIFSIGNALED(status)))
            return TRACEE_GONE;
        stop = look(t);
        if (stop != TRACEE_TIMEOUT || tracee_now_ns() >= t->deadline_ns)
            return stop;
        nanosleep(&pause, NULL);
        if (pause.tv_nsec < POLL_MAX_NS)
            pause.tv_nsec += pause.tv_nsec / 2;
    }
}

enum tracee_stop tracee_wait_trap(struct tracee *t)
{
    enum tracee_stop stop;

    while ((stop = wait_stop(t)) == TRACEE_SIGNAL)
        if (tracee_request(PTRACE_CONT, t->tid, 0,
                           (void *)(uintptr_t)t->signal) < 0)
            return TRACEE_GONE;
    return stop;
}

enum tracee_stop tracee_next_syscall(struct tracee *t)
{
    uintptr_t deliver = 0;
    int how = PTRACE_SYSCALL;
    enum tracee_stop stop;

    for (;;) {
        if (tracee_request(how, t->tid, 0, (void *)deliver) < 0)
            return TRACEE_GONE;
        stop = wait_stop(t);
        if (stop != TRACEE_TRAP && stop != TRACEE_GROUP &&
            stop != TRACEE_SIGNAL)
            return stop;
        /* A stopped process stays stopped: only its SIGCONT wakes it. */
        how = stop == TRACEE_GROUP ? PTRACE_LISTEN : PTRACE_SYSCALL;
        deliver = stop == TRACEE_SIGNAL ? (uintptr_t)t->signal : 0;
    }
}

enum tracee_stop tracee_stop_again(struct tracee *t)
{
    if (tracee_request(PTRACE_INTERRUPT, t->tid, 0, NULL) < 0 ||
        tracee_request(PTRACE_CONT, t->tid, 0, NULL) < 0)
        return TRACEE_GONE;
    return tracee_wait_trap(t);
}

void tracee_detach(const struct tracee *t)
{
    tracee_request(PTRACE_DETACH, t->tid, 0, NULL);
}
