/* SPDX-License-Identifier: MIT */
#include "worker.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>
#include <time.h>

#include "base/checked.h"

#define NS_PER_S ((uint64_t)1000000000)
/* Unused rate is kept for so long: a late wake-up is made up for. */
#define PACE_SLACK_NS ((uint64_t)100000000)

uint64_t worker_now_ns(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

int worker_init(struct worker *w, struct qstill_error *err)
{
    *w = (struct worker){
        .event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
        .cancel_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK),
    };
    if (w->event_fd < 0 || w->cancel_fd < 0) {
        int why = errno;

        worker_fini(w);
        return err_errno(err, why, "cannot make an eventfd");
    }
    return 0;
}

void worker_fini(struct worker *w)
{
    closep(&w->event_fd);
    closep(&w->cancel_fd);
    w->event_fd = w->cancel_fd = -1;
}

void worker_signal(struct worker *w)
{
    eventfd_write(w->event_fd, 1);
}

static void *thread_main(void *arg)
{
    struct worker *w = arg;
    struct qstill_error err = {0};

    if (w->run(w->ctx, &err) < 0)
        w->error = err;
    __atomic_store_n(&w->complete, true, __ATOMIC_RELEASE);
    worker_signal(w);
    return NULL;
}

int worker_start(struct worker *w, int (*run)(void *ctx, struct qstill_error *),
                 void *ctx, struct qstill_error *err)
{
    sigset_t all, before;
    int rc;

    w->run = run;
    w->ctx = ctx;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    rc = pthread_create(&w->thread, NULL, thread_main, w);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc != 0)
        return err_errno(err, rc, "cannot start a thread");
    w->started = true;
    return 0;
}

bool worker_poll(struct worker *w, uint64_t *done, uint64_t *total)
{
    eventfd_t ignored;

    /* first: what changes from here on makes it readable again */
    eventfd_read(w->event_fd, &ignored);
    *done = __atomic_load_n(&w->done, __ATOMIC_RELAXED);
    *total = __atomic_load_n(&w->total, __ATOMIC_RELAXED);
    return __atomic_load_n(&w->complete, __ATOMIC_ACQUIRE);
}

int worker_result(const struct worker *w, struct qstill_error *err)
{
    if (!__atomic_load_n(&w->complete, __ATOMIC_ACQUIRE))
        return err_set(err, QSTILL_E_BUSY, "the work is not complete");
    if (w->error.code != 0)
        *err = w->error;
    return w->error.code;
}

void worker_cancel(struct worker *w)
{
    __atomic_store_n(&w->cancelled, true, __ATOMIC_RELAXED);
    eventfd_write(w->cancel_fd, 1);
}

void worker_join(struct worker *w)
{
    if (!w->started)
        return;
    worker_cancel(w);
    pthread_join(w->thread, NULL);
    w->started = false;
}

void worker_set_total(struct worker *w, uint64_t bytes)
{
    __atomic_store_n(&w->total, bytes, __ATOMIC_RELAXED);
}

void worker_add_done(struct worker *w, uint64_t bytes)
{
    __atomic_fetch_add(&w->done, bytes, __ATOMIC_RELAXED);
}

bool worker_cancelled(const struct worker *w)
{
    return __atomic_load_n(&w->cancelled, __ATOMIC_RELAXED);
}

int worker_check(const struct worker *w, struct qstill_error *err)
{
    if (worker_cancelled(w))
        return err_set(err, QSTILL_E_CANCELLED, "cancelled");
    return 0;
}

int worker_wait(const struct worker *w, int fd, short events,
                struct qstill_error *err)
{
    struct pollfd fds[] = {
        {.fd = fd, .events = events},
        {.fd = w->cancel_fd, .events = POLLIN},
    };

    while (poll(fds, ARRAY_LEN(fds), -1) < 0)
        if (errno != EINTR)
            return err_errno(err, errno, "poll failed");
    return worker_check(w, err);
}

/* ------------------------------------------------------------------- pace */

void pace_init(struct pace *p, uint64_t rate)
{
    *p = (struct pace){.rate = rate};
}

uint64_t pace_take(struct pace *p, uint64_t bytes, uint64_t now_ns)
{
    uint64_t start = p->free_ns;

    if (p->rate == 0)
        return 0;
    if (start + PACE_SLACK_NS < now_ns)
        start = now_ns - PACE_SLACK_NS;
    /* pieces are some MiB at most: no overflow in 64 bits below 18 GB */
    p->free_ns = start + bytes * NS_PER_S / p->rate;
    return start > now_ns ? start - now_ns : 0;
}

int worker_nap(const struct worker *w, uint64_t ns, struct qstill_error *err)
{
    struct pollfd fd = {.fd = w->cancel_fd, .events = POLLIN};

    for (uint64_t now = worker_now_ns(), end = now + ns;
         now < end && !worker_cancelled(w); now = worker_now_ns()) {
        struct timespec t = {(time_t)((end - now) / NS_PER_S),
                             (long)((end - now) % NS_PER_S)};

        ppoll(&fd, 1, &t, NULL);
    }
    return worker_check(w, err);
}

int worker_pace(const struct worker *w, struct pace *p, uint64_t bytes,
                struct qstill_error *err)
{
    uint64_t ns = p->rate ? pace_take(p, bytes, worker_now_ns()) : 0;

    return worker_nap(w, ns, err);
}
