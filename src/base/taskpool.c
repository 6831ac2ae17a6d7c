/* SPDX-License-Identifier: MIT */
#include "taskpool.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/eventfd.h>

#include "checked.h"

struct taskpool {
    pthread_mutex_t lock;
    pthread_cond_t work; /* something is queued, or the end */
    struct task *queued;
    struct task **tail;
    struct task *finished;
    bool ending;
    int event_fd;
    unsigned started;
    pthread_t threads[];
};

/* NULL at the end. */
static struct task *next_task(struct taskpool *p)
{
    struct task *t = NULL;

    pthread_mutex_lock(&p->lock);
    while (!p->queued && !p->ending)
        pthread_cond_wait(&p->work, &p->lock);
    if (!p->ending) {
        t = p->queued;
        p->queued = t->next;
        if (!p->queued)
            p->tail = &p->queued;
    }
    pthread_mutex_unlock(&p->lock);
    return t;
}

static void *serve(void *user)
{
    struct taskpool *p = user;
    struct task *t;

    while ((t = next_task(p))) {
        t->run(t);
        pthread_mutex_lock(&p->lock);
        t->next = p->finished;
        p->finished = t;
        pthread_mutex_unlock(&p->lock);
        eventfd_write(p->event_fd, 1);
    }
    return NULL;
}

static unsigned usable_cpus(void)
{
    cpu_set_t set;

    if (sched_getaffinity(0, sizeof(set), &set) < 0)
        return 1;
    return (unsigned)max_u64((uint64_t)CPU_COUNT(&set), 1);
}

/* Threads inherit the mask of signals: all are the embedder's. */
static int start_threads(struct taskpool *p, unsigned count)
{
    sigset_t all, before;
    int r = 0;

    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (r == 0 && p->started < count) {
        r = pthread_create(&p->threads[p->started], NULL, serve, p);
        p->started += r == 0;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return p->started > 0 ? 0 : r; /* fewer threads are only slower */
}

int taskpool_open(struct taskpool **out, unsigned max, int event_fd,
                  struct qstill_error *err)
{
    unsigned count = (unsigned)min_u64(usable_cpus(), max_u64(max, 1));
    struct taskpool *p = calloc(1, sizeof(*p) + count * sizeof(p->threads[0]));
    int r;

    if (!p)
        return err_nomem(err);
    p->tail = &p->queued;
    p->event_fd = event_fd;
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->work, NULL);
    r = start_threads(p, count);
    if (r != 0) {
        taskpool_close(p);
        return err_errno(err, r, "cannot start a thread");
    }
    *out = p;
    return 0;
}

void taskpool_close(struct taskpool *p)
{
    if (!p)
        return;
    pthread_mutex_lock(&p->lock);
    p->ending = true;
    pthread_cond_broadcast(&p->work);
    pthread_mutex_unlock(&p->lock);
    for (unsigned i = 0; i < p->started; i++)
        pthread_join(p->threads[i], NULL);
    pthread_cond_destroy(&p->work);
    pthread_mutex_destroy(&p->lock);
    free(p);
}

unsigned taskpool_threads(const struct taskpool *p)
{
    return p->started;
}

void taskpool_submit(struct taskpool *p, struct task *t)
{
    t->next = NULL;
    pthread_mutex_lock(&p->lock);
    *p->tail = t;
    p->tail = &t->next;
    pthread_cond_signal(&p->work);
    pthread_mutex_unlock(&p->lock);
}

struct task *taskpool_take(struct taskpool *p)
{
    struct task *t;

    pthread_mutex_lock(&p->lock);
    t = p->finished;
    if (t)
        p->finished = t->next;
    pthread_mutex_unlock(&p->lock);
    return t;
}
