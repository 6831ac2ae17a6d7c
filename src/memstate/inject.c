/* SPDX-License-Identifier: MIT */
/*
 * The happy path, on a thread of its own (ptrace belongs to a thread, and
 * its end makes the kernel let go of whatever we could not let go of):
 *   1. look at the process; find the code to use in it
 *   2. attach to the thread that is suited best, stop it, read its context
 *   3. write the signal frame below its stack          (changes nothing)
 *   4. set its registers: from here it comes back by itself
 *   5. hold its signals back; let it run to the end of the call
 *   6. fetch the descriptor, if it made one; have the thread close its own
 *   7. let it run through rt_sigreturn; check; detach, in the system call
 *      that it was stopped in
 * Failures: a thread that cannot be used is let go as it was, and the next
 * one is tried, again and again until the time is over. After step 4 the
 * thread is let go and comes back by itself.
 */
#include "inject.h"

#include <errno.h>
#include <linux/audit.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>

#include "base/checked.h"
#include "memstate/inject_arch.h"
#include "memstate/inject_seccomp.h"
#include "memstate/inject_status.h"
#include "memstate/inject_tracee.h"
#include "memstate/regions.h"

/* How long one thread may take to stop: one that sleeps in the kernel without
 * listening (state D) is given up for another. */
#define STOP_MS 200u
/* How long a process that is killed may take until that can be seen. */
#define DYING_MS 200u
/* Between two rounds over all threads. */
#define ROUND_NS 2000000

struct injection {
    pid_t pid;
    int pidfd;
    const struct inject_call *call;
    const struct inject_options *options;
    uint64_t deadline_ns;
    struct inject_code code;
    struct inject_result result;
    struct qstill_error *err;
    int status;
};

static void step(const struct injection *in, const char *name)
{
    if (in->options && in->options->hook)
        in->options->hook(in->options->user, name);
}

/* A thread that we trace did not stop in time, and may have done so since. (It
 * is traced by this thread, as the kernel counts.) */
static int check_process(const struct injection *in, pid_t tid, bool *filters,
                         struct qstill_error *err)
{
    struct inject_status st;

    if (inject_status_read(in->pid, tid, &st, err) < 0)
        return err->code;
    *filters = st.seccomp == 2;
    if (st.state == 'Z' || st.state == 'X' || st.tracer == gettid())
        return err_set(err, QSTILL_E_BUSY, "thread %d cannot be used", tid);
    if (st.tracer != 0)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "process %d is traced by process %d", in->pid,
                       st.tracer);
    if (st.state == 'T')
        return err_set(err, QSTILL_E_PRECONDITION,
                       "process %d is stopped by a signal", in->pid);
    if (st.shadow_stack)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "process %d has shadow stacks", in->pid);
    if (st.seccomp == 1)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "process %d may read and write only (seccomp)", in->pid);
    return 0;
}

static struct seccomp_data seccomp_view(const struct injection *in,
                                        const struct inject_call *call)
{
    struct seccomp_data d = {
        .nr = (int)call->nr,
        .arch = AUDIT_ARCH_X86_64,
        .instruction_pointer = in->code.syscall_ret + 2,
    };

    for (int i = 0; i < 6; i++)
        d.args[i] = call->args[i];
    return d;
}

/* All that will be called in the target, before the first of them is. */
static int check_filters(const struct injection *in, pid_t tid,
                         struct qstill_error *err)
{
    static const struct inject_call ours[] = {
        {.name = "close", .nr = SYS_close, .args = {3}},
        {.name = "rt_sigreturn", .nr = SYS_rt_sigreturn},
    };
    struct seccomp_data d = seccomp_view(in, in->call);

    if (inject_seccomp_check(tid, &d, in->call->name, err) < 0)
        return err->code;
    for (size_t i = 0; i < ARRAY_LEN(ours); i++) {
        d = seccomp_view(in, &ours[i]);
        if (inject_seccomp_check(tid, &d, ours[i].name, err) < 0)
            return err->code;
    }
    return 0;
}

/* The thread is on its detour and something is not as it should be: it comes
 * back by itself. */
static int lost(const struct injection *in, enum tracee_stop stop,
                struct qstill_error *err)
{
    if (stop == TRACEE_GONE)
        return err_set(err, QSTILL_E_UNREACHABLE, "process %d has ended",
                       in->pid);
    return err_set(err, QSTILL_E_FAILED, "process %d did not run %s (%s)",
                   in->pid, in->call->name,
                   stop == TRACEE_TIMEOUT ? "no answer in time"
                                          : "unexpected stop");
}

/* From wherever it stands through one whole system call. */
static int through_call(struct injection *in, struct tracee *t, long nr,
                        struct qstill_error *err)
{
    enum tracee_stop stop = tracee_next_syscall(t);

    step(in, "entry");
    if (stop == TRACEE_ENTRY && t->nr != (uint64_t)nr)
        stop = TRACEE_OTHER;
    if (stop == TRACEE_ENTRY)
        stop = tracee_next_syscall(t);
    step(in, "exit");
    return stop == TRACEE_EXIT ? 0 : lost(in, stop, err);
}

/* Brings the descriptor over and has the target's own closed. */
static int fetch(struct injection *in, struct tracee *t, long remote,
                 struct qstill_error *err)
{
    struct inject_call close_call = {
        .name = "close", .nr = SYS_close, .args = {(unsigned long)remote}};
    int saved;

    in->result.fd = (int)syscall(SYS_pidfd_getfd, in->pidfd, (int)remote, 0);
    saved = errno;
    step(in, "fetched");
    if (inject_call_again(t->tid, &in->code, &close_call, err) < 0 ||
        through_call(in, t, SYS_close, err) < 0)
        return err->code;
    step(in, "closed");
    if (in->result.fd < 0)
        return err_errno(err, saved, "cannot fetch a descriptor of process %d",
                         in->pid);
    return 0;
}

/* The detour: from a stopped, unchanged thread back to it. */
static int detour(struct injection *in, struct tracee *t,
                  const struct inject_context *context,
                  const struct user_regs_struct *start,
                  struct qstill_error *err)
{
    long remote = 0;

    if (inject_regs_set(t->tid, start, err) < 0)
        return err->code;
    step(in, "moved");
    if (inject_signals_hold(t->tid, err) < 0)
        return err->code;
    step(in, "held");
    if (through_call(in, t, in->call->nr, err) < 0 ||
        inject_call_result(t->tid, &remote, err) < 0)
        return err->code;
    if (remote < 0)
        in->result.remote_errno = (int)-remote;
    else if (!in->call->number && fetch(in, t, remote, err) < 0)
        return err->code;
    if (through_call(in, t, SYS_rt_sigreturn, err) < 0)
        return err->code;
    step(in, "returned");
    if (inject_context_check(t->tid, context, err) < 0)
        return err->code;
    /* If it does not stop again in time, it goes on as it is. */
    if (inject_context_restarts(context) && tracee_stop_again(t) == TRACEE_TRAP)
        return inject_context_settle(t->tid, context, err);
    return 0;
}

/* Of a stopped thread, up to the point where it is still unchanged. */
static int prepare(struct injection *in, struct tracee *t, bool filters,
                   struct inject_context *context,
                   struct user_regs_struct *start, struct qstill_error *err)
{
    if (inject_context_read(t->tid, context, err) < 0)
        return err->code;
    if (filters && check_filters(in, t->tid, err) < 0)
        return err->code;
    step(in, "read");
    if (inject_frame_write(t->tid, context, &in->code, in->call, start, err) <
        0)
        return err->code;
    step(in, "written");
    return 0;
}

static int not_stopped(pid_t pid, enum tracee_stop stop,
                       struct qstill_error *err)
{
    if (stop == TRACEE_GROUP)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "process %d is stopped by a signal", pid);
    return err_set(err, QSTILL_E_BUSY, "a thread of process %d %s", pid,
                   stop == TRACEE_GONE ? "has ended" : "does not stop");
}

/* *moved: the thread was sent on its detour, so there is no second try. */
static int use_thread(struct injection *in, pid_t tid, bool *moved,
                      struct qstill_error *err)
{
    CLEANUP(inject_context_fini)
    struct inject_context context = {.fpu = BUF_INIT};
    uint64_t begun = tracee_now_ns();
    struct user_regs_struct start;
    enum tracee_stop stop;
    struct tracee t;
    bool filters = false;

    if (check_process(in, tid, &filters, err) < 0)
        return err->code;
    step(in, "attach");
    if (tracee_attach(&t, tid, begun + STOP_MS * 1000000u, err) < 0)
        return err->code;
    step(in, "attached");
    stop = tracee_wait_trap(&t);
    step(in, "stopped");
    if (stop != TRACEE_TRAP) {
        tracee_detach(&t);
        return not_stopped(in->pid, stop, err);
    }
    t.deadline_ns = max_u64(in->deadline_ns, t.deadline_ns);
    if (prepare(in, &t, filters, &context, &start, err) == 0) {
        *moved = true;
        in->result.tid = tid;
        detour(in, &t, &context, &start, err);
    }
    tracee_detach(&t);
    step(in, "detached");
    in->result.held_ms = (double)(tracee_now_ns() - begun) / 1e6;
    return err->code;
}

/* BUSY is about one thread, now: another one, or this one later, may do. */
static bool passing(const struct qstill_error *err)
{
    return err->code == QSTILL_E_BUSY;
}

/* Its memory goes first, then what it did, then its number. */
static bool process_ended(const struct injection *in)
{
    CLEANUP(buf_fini) struct buf maps = BUF_INIT;
    struct pollfd p = {in->pidfd, POLLIN, 0};
    struct qstill_error scratch;

    return poll(&p, 1, 0) == 1 ||
           regions_read(in->pid, &maps, &scratch) == QSTILL_E_UNREACHABLE;
}

/* The first that is seen of a process's end may be one thread that is gone, or
 * may not be traced: where a failure may mean that, a moment is waited. */
static bool process_ends(const struct injection *in, int code)
{
    bool may = code == QSTILL_E_FAILED || code == QSTILL_E_PERMISSION;
    uint64_t until = tracee_now_ns() + (may ? DYING_MS * 1000000u : 0);

    while (!process_ended(in)) {
        struct pollfd p = {in->pidfd, POLLIN, 0};

        if (tracee_now_ns() >= until)
            return false;
        poll(&p, 1, 5);
    }
    return true;
}

static int one_round(struct injection *in, bool *moved,
                     struct qstill_error *err)
{
    CLEANUP(freep) pid_t *tids = NULL;
    size_t count;

    if (inject_threads(in->pid, &tids, &count, err) < 0)
        return err->code;
    if (count == 0)
        return err_set(err, QSTILL_E_BUSY,
                       "each thread of process %d is in a wait that would end "
                       "with EINTR",
                       in->pid);
    for (size_t i = 0; i < count; i++) {
        err->code = 0;
        if (use_thread(in, tids[i], moved, err) == 0 || *moved ||
            !passing(err) || tracee_now_ns() >= in->deadline_ns)
            return err->code;
    }
    return err->code;
}

static int all_rounds(struct injection *in, struct qstill_error *err)
{
    struct timespec pause = {0, ROUND_NS};
    bool moved = false;

    if (inject_find_code(in->pid, &in->code, err) < 0)
        return err->code;
    for (;;) {
        if (one_round(in, &moved, err) == 0 || moved || !passing(err))
            return err->code;
        if (process_ended(in))
            return err->code;
        if (tracee_now_ns() >= in->deadline_ns) {
            err->code = QSTILL_E_PRECONDITION;
            return err_wrap(err, "no thread can be used now");
        }
        nanosleep(&pause, NULL);
    }
}

static void *injection_main(void *arg)
{
    struct injection *in = arg;

    in->status = all_rounds(in, in->err);
    return NULL;
}

/* No signal handler of the program runs on the injecting thread. */
static int run_thread(struct injection *in, struct qstill_error *err)
{
    sigset_t all, old;
    pthread_t thread;
    int r;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    r = pthread_create(&thread, NULL, injection_main, in);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    if (r)
        return err_errno(err, r, "cannot start a thread");
    pthread_join(thread, NULL);
    return in->status;
}

int inject_fd(pid_t pid, const struct inject_call *call,
              const struct inject_options *options,
              struct inject_result *result, struct qstill_error *err)
{
    unsigned ms = options ? options->timeout_ms : 0;
    CLEANUP(closep) int pidfd = -1;
    struct injection in = {
        .pid = pid,
        .call = call,
        .options = options,
        .result = {.fd = -1},
        .err = err,
    };

    err->code = 0;
    pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (pidfd < 0 && errno == ESRCH)
        return err_set(err, QSTILL_E_UNREACHABLE, "there is no process %d",
                       pid);
    if (pidfd < 0)
        return err_errno(err, errno, "cannot refer to process %d", pid);
    in.pidfd = pidfd;
    in.deadline_ns =
        tracee_now_ns() + (uint64_t)(ms ? ms : INJECT_TIMEOUT_MS) * 1000000u;
    if (run_thread(&in, err) < 0) {
        closep(&in.result.fd);
        if (process_ends(&in, err->code))
            return err_set(err, QSTILL_E_UNREACHABLE, "process %d has ended",
                           pid);
        return err_wrap(err, "%s in process %d", call->name, pid);
    }
    *result = in.result;
    return 0;
}
