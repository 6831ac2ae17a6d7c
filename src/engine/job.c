/* SPDX-License-Identifier: MIT */
/*
 * The phase machine. The job's fd is an epoll instance: an eventfd in it is
 * readable while there is work to do at once (and after a cancel), and a phase
 * may hang one more fd in for as long as it only waits.
 */
#include "job.h"

#include <errno.h>
#include <poll.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/clock.h"

#define TICK_MS 100 /* the shortest time between two calls inside a step */

struct qstill_job {
    const struct job_ops *ops;
    void *ctx;
    size_t phase;
    bool entered;
    bool finished;
    int epoll_fd;
    int wake_fd;
    int waiting_fd;
    atomic_bool cancelled;
    bool is_done; /* too late for that */
    uint64_t done, total;
    void (*tick)(void *user, const struct qstill_progress *p); /* of _run() */
    void *tick_user;
    double ticked_ms;
    struct qstill_error error; /* of a finished, failed job */
    struct buf text;
};

int job_new(struct qstill_job **out, const struct job_ops *ops, void *ctx,
            struct qstill_error *err)
{
    struct qstill_job *job = calloc(1, sizeof(*job));
    struct epoll_event ev = {.events = EPOLLIN};

    if (!job) {
        ops->free(ctx);
        return err_nomem(err);
    }
    job->ops = ops;
    job->ctx = ctx;
    job->waiting_fd = -1;
    job->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    job->wake_fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
    if (job->epoll_fd < 0 || job->wake_fd < 0 ||
        epoll_ctl(job->epoll_fd, EPOLL_CTL_ADD, job->wake_fd, &ev) < 0) {
        err_errno(err, errno, "cannot set up a job");
        qstill_job_free(job);
        return err->code;
    }
    *out = job;
    return 0;
}

void *job_ctx(const struct qstill_job *job, const struct job_ops *ops)
{
    return job && job->ops == ops ? job->ctx : NULL;
}

bool job_cancelled(const struct qstill_job *job)
{
    return !job->is_done && atomic_load(&job->cancelled);
}

static bool stop_asked(void *user)
{
    return job_cancelled(user);
}

struct aio_stop job_stop(struct qstill_job *job)
{
    return (struct aio_stop){job ? stop_asked : NULL, job};
}

void job_is_done(struct qstill_job *job)
{
    job->is_done = true;
}

struct buf *job_text(struct qstill_job *job)
{
    return &job->text;
}

void job_measure(struct qstill_job *job, uint64_t done, uint64_t total)
{
    job->done = done;
    job->total = total;
}

static void tick(struct qstill_job *job)
{
    struct qstill_progress progress;

    if (!job->tick)
        return;
    qstill_job_progress(job, &progress);
    job->tick(job->tick_user, &progress);
    job->ticked_ms = clock_ms();
}

int job_pulse(struct qstill_job *job, uint64_t done, uint64_t total,
              struct qstill_error *err)
{
    if (!job)
        return 0;
    job_measure(job, done, total);
    if (clock_ms() - job->ticked_ms >= TICK_MS)
        tick(job);
    return job_cancelled(job) ? err_set(err, QSTILL_E_CANCELLED, "cancelled")
                              : 0;
}

int job_wait_on(struct qstill_job *job, int fd, struct qstill_error *err)
{
    struct epoll_event ev = {.events = EPOLLIN};
    uint64_t n = 1;

    if (job->waiting_fd == fd && fd >= 0)
        return 0;
    if (job->waiting_fd >= 0)
        epoll_ctl(job->epoll_fd, EPOLL_CTL_DEL, job->waiting_fd, NULL);
    job->waiting_fd = fd;
    if (fd < 0) {
        if (write(job->wake_fd, &n, sizeof(n)) < 0 && errno != EAGAIN)
            return err_errno(err, errno, "cannot wake a job");
        return 0;
    }
    if (read(job->wake_fd, &n, sizeof(n)) < 0 && errno != EAGAIN)
        return err_errno(err, errno, "cannot quiet a job");
    if (epoll_ctl(job->epoll_fd, EPOLL_CTL_ADD, fd, &ev) < 0)
        return err_errno(err, errno, "cannot wait in a job");
    return 0;
}

/* What an undo leaves to be done is told with what the failure does. */
static void add_hint(struct qstill_error *err, const char *hint)
{
    size_t n = strlen(err->hint);

    if (*hint && !strstr(err->hint, hint))
        snprintf(err->hint + n, sizeof(err->hint) - n, "%s%s", n ? "; " : "",
                 hint);
}

static void undo_all(struct qstill_job *job, struct qstill_error *err)
{
    struct qstill_error scratch;

    for (size_t i = job->phase + 1; i-- > 0;) {
        const struct job_phase *p = &job->ops->phases[i];

        if (!p->name || !p->undo || (i == job->phase && !job->entered))
            continue;
        p->undo(job->ctx, err_door(NULL, &scratch));
        if (scratch.code == 0)
            continue;
        buf_printf(&job->text, "undo of %s: %s\n", p->name, scratch.message);
        add_hint(err, scratch.hint);
    }
}

static int fail(struct qstill_job *job, struct qstill_error *err)
{
    struct qstill_error ignored = {0};

    undo_all(job, err);
    job->finished = true;
    job->error = *err;
    job_wait_on(job, -1, &ignored);
    return err->code;
}

static int run_phase(struct qstill_job *job, bool *phase_done,
                     struct qstill_error *err)
{
    const struct job_phase *p = &job->ops->phases[job->phase];

    *phase_done = p->step == NULL;
    if (!job->entered) {
        job->entered = true;
        job->done = job->total = 0;
        return p->enter ? p->enter(job->ctx, err) : 0;
    }
    return p->step ? p->step(job->ctx, phase_done, err) : 0;
}

QSTILL_PUBLIC int qstill_job_step(struct qstill_job *job, bool *done,
                                  struct qstill_error *caller_err)
{
    struct qstill_error scratch, *err = err_door(caller_err, &scratch);
    bool phase_done = false;

    *done = job->finished;
    if (job->finished) {
        *err = job->error;
        return err->code;
    }
    if (job_cancelled(job)) {
        err_set(err, QSTILL_E_CANCELLED, "cancelled");
        *done = true;
        return fail(job, err);
    }
    if (run_phase(job, &phase_done, err) < 0) {
        *done = true;
        return fail(job, err);
    }
    err_clear(err);
    if (!phase_done)
        return 0;
    job_wait_on(job, -1, err);
    job->entered = false;
    job->phase++;
    if (!job->ops->phases[job->phase].name)
        *done = job->finished = true;
    return 0;
}

QSTILL_PUBLIC int qstill_job_fd(const struct qstill_job *job)
{
    return job->epoll_fd;
}

QSTILL_PUBLIC void qstill_job_progress(const struct qstill_job *job,
                                       struct qstill_progress *out)
{
    const char *name = job->ops->phases[job->phase].name;

    out->phase = name ? name : "done";
    out->bytes_done = job->done;
    out->bytes_total = job->total;
}

QSTILL_PUBLIC void qstill_job_cancel(struct qstill_job *job)
{
    uint64_t one = 1;

    atomic_store(&job->cancelled, true);
    /* A full counter is readable as well, which is all that is wanted. */
    if (write(job->wake_fd, &one, sizeof(one)) < 0)
        return;
}

QSTILL_PUBLIC void qstill_job_free(struct qstill_job *job)
{
    struct qstill_error unheard = {0};

    if (!job)
        return;
    if (!job->finished && (job->phase > 0 || job->entered))
        undo_all(job, &unheard);
    job->ops->free(job->ctx);
    if (job->epoll_fd >= 0)
        close(job->epoll_fd);
    if (job->wake_fd >= 0)
        close(job->wake_fd);
    buf_fini(&job->text);
    free(job);
}

static int run_to_end(struct qstill_job *job, struct qstill_error *err)
{
    struct pollfd pfd = {.fd = job->epoll_fd, .events = POLLIN};
    bool done = false;

    while (!done) {
        if (poll(&pfd, 1, 200) < 0 && errno != EINTR)
            return err_errno(err, errno, "waiting for a job");
        tick(job);
        if (qstill_job_step(job, &done, err) < 0)
            return err->code;
    }
    return 0;
}

QSTILL_PUBLIC int
qstill_job_run(struct qstill_job *job,
               void (*tick_fn)(void *user, const struct qstill_progress *p),
               void *user, struct qstill_error *caller_err)
{
    struct qstill_error scratch, *err = err_door(caller_err, &scratch);
    int r;

    job->tick = tick_fn;
    job->tick_user = user;
    r = run_to_end(job, err);
    /* `user` is the caller's: what comes later, an undo, has none */
    job->tick = NULL;
    job->tick_user = NULL;
    return r;
}

QSTILL_PUBLIC const char *qstill_job_text(const struct qstill_job *job)
{
    return job->text.data ? (const char *)job->text.data : "";
}
