/* SPDX-License-Identifier: MIT */
/*
 * The public merge of images: a job with two phases. In "plan" all is read and
 * refused what must be; "merge" does it, or in a dry run nothing. The second
 * can be cancelled until an image flips; the rest is then done in one step. A
 * fold that writes over the lower image leaves its journal when it is
 * cancelled: the next merge goes on with it, and is over when that was what it
 * is for.
 */
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/arena.h"
#include "base/options.h"
#include "image.h"
#include "job.h"
#include "qcow2/merge.h"
#include "qcow2/merge_asked.h"
#include "qcow2/merge_names.h"

struct merge_job {
    struct qstill_job *job; /* ours; set once it exists */
    struct arena arena;
    struct merge_request request;
    const char **drop; /* the request's, to be put in another order */
    size_t drop_asked;
    const char *format; /* of top; NULL: by its first bytes */
    bool dry_run;
    struct merge *merge;
    struct merge_recovered before; /* what an earlier one had left to be done */
    struct timespec start;
    struct qstill_image_merge_result result;
};

static void job_free(void *ctx)
{
    struct merge_job *j = ctx;

    merge_close(j->merge);
    arena_fini(&j->arena);
    free(j);
}

static double elapsed_ms(const struct merge_job *j)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)(now.tv_sec - j->start.tv_sec) * 1e3 +
           (double)(now.tv_nsec - j->start.tv_nsec) / 1e6;
}

static const char **copy_strings(struct arena *a, const char *const *from,
                                 size_t n)
{
    char **v = arena_array(a, n + 1, sizeof(*v));

    for (size_t i = 0; v && i < n; i++) {
        v[i] = arena_strdup(a, from[i]);
        if (!v[i])
            return NULL;
    }
    return (const char **)v;
}

/* What an earlier try of this merge has taken away need not be asked for. */
static int take_off_gone(struct merge_job *j, const struct merge_asked *asked,
                         struct qstill_error *err)
{
    struct merge_request *q = &j->request;
    size_t left = 0;

    for (size_t i = 0; i < q->drop_count; i++) {
        const char *path = j->drop[i];

        if (!merge_asked_has_gone(asked, path)) {
            j->drop[i] = j->drop[left];
            j->drop[left++] = path;
        } else if (buf_printf(job_text(j->job), "%s is not there any more\n",
                              path) < 0) {
            return err_nomem(err);
        }
    }
    q->went = j->drop + left;
    q->went_count = q->drop_count - left;
    q->drop_count = left;
    return 0;
}

static int open_merge(struct merge_job *j, struct qstill_error *err)
{
    j->request.stop = job_stop(j->job);
    return image_format_of(j->request.top, j->format, &j->request.format, err) <
                       0 ||
                   merge_open(&j->merge, io_real(), &j->request, err) < 0
               ? err->code
               : 0;
}

static int pulse(void *user, uint64_t done, uint64_t total,
                 struct qstill_error *err)
{
    return job_pulse(user, done, total, err);
}

/* A merge that died comes first. A fold that goes on is work like ours. */
static int recover_before(struct merge_job *j, struct merge_asked *asked,
                          struct qstill_error *err)
{
    struct merge_recovery how = {.done = &j->before,
                                 .told = job_text(j->job),
                                 .bwlimit = j->request.bwlimit,
                                 .gentle = j->request.gentle,
                                 .stop = job_stop(j->job),
                                 .pulse = pulse,
                                 .user = j->job};
    bool did = false;

    if (merge_recover_before(io_real(), &j->request, &how, &did, asked, err) <
        0)
        return err->code;
    job_measure(j->job, 0, 0);
    if (did && buf_puts(job_text(j->job),
                        "an unfinished merge was finished or undone\n") < 0)
        return err_nomem(err);
    return 0;
}

static int plan_enter(void *ctx, struct qstill_error *err)
{
    struct merge_job *j = ctx;
    CLEANUP(merge_asked_fini) struct merge_asked asked = {0};
    int r;

    clock_gettime(CLOCK_MONOTONIC, &j->start);
    if (j->dry_run
            ? merge_look_at_asked(io_real(), j->request.top, &asked, err) < 0
            : recover_before(j, &asked, err) < 0)
        return err->code;
    if (take_off_gone(j, &asked, err) < 0)
        return err->code;
    if (j->request.drop_count == 0 && j->drop_asked > 0) { /* it was this one */
        job_is_done(j->job);
        return 0;
    }
    j->request.tried = &asked;
    r = open_merge(j, err);
    j->request.tried = NULL;
    return r < 0 ? r : merge_describe(j->merge, job_text(j->job), err);
}

static void account(struct merge_job *j)
{
    struct qstill_image_merge_result *r = &j->result;
    struct merge_count c = j->before.count;
    const struct merge_estimate *e;

    *r = (struct qstill_image_merge_result){
        .direction = j->before.direction ? j->before.direction : "none",
        .bytes_moved = c.done - c.shared,
        .bytes_cloned = c.shared,
        .bytes_freed = c.freed,
        .ms = elapsed_ms(j)};
    if (!j->merge)
        return;
    e = merge_estimate(j->merge);
    c = merge_count(j->merge);
    r->direction = e->direction;
    r->bytes_moved += j->dry_run ? e->bytes - e->shared : c.done - c.shared;
    r->bytes_cloned += j->dry_run ? e->shared : c.shared;
    r->bytes_freed += j->dry_run ? e->freed : c.freed;
    r->bitmaps_dropped = e->bitmaps_lost;
}

static int merge_enter(void *ctx, struct qstill_error *err)
{
    struct merge_job *j = ctx;

    (void)err;
    if (j->merge)
        job_measure(j->job, 0, merge_estimate(j->merge)->bytes);
    return 0;
}

static int merge_go(void *ctx, bool *done, struct qstill_error *err)
{
    struct merge_job *j = ctx;

    *done = j->dry_run || !j->merge;
    while (!*done) {
        if (merge_step(j->merge, done, err) < 0)
            return err->code;
        if (!merge_is_late(j->merge))
            break;
    }
    if (j->merge)
        job_measure(j->job, merge_count(j->merge).done,
                    merge_estimate(j->merge)->bytes);
    if (*done)
        account(j);
    else if (job_wait_on(j->job, merge_fd(j->merge), err) < 0)
        return err->code;
    return 0;
}

static void merge_undo(void *ctx, struct qstill_error *err)
{
    struct merge_job *j = ctx;

    if (j->merge)
        merge_cancel(j->merge, err);
}

static const struct job_phase phases[] = {
    {"plan", plan_enter, NULL, NULL},
    {"merge", merge_enter, merge_go, merge_undo},
    {NULL, NULL, NULL, NULL},
};

static const struct job_ops ops = {phases, job_free};

/* ---------------------------------------------------------------- arguments */

static int set_direction(struct merge_request *q, const char *name,
                         struct qstill_error *err)
{
    static const char *const names[] = {[MERGE_AUTO] = "auto",
                                        [MERGE_UP] = "up",
                                        [MERGE_DOWN] = "down",
                                        [MERGE_NEW] = "new"};

    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        if (strcmp(name, names[i]) == 0) {
            q->direction = (enum merge_direction)i;
            return 0;
        }
    return err_set(err, QSTILL_E_USAGE, "there is no direction \"%s\"", name);
}

static int set_request(struct merge_job *j, const char *top,
                       const struct qstill_image_merge_options *o,
                       struct qstill_error *err)
{
    struct merge_request *q = &j->request;

    *q = (struct merge_request)MERGE_REQUEST_INIT;
    q->top = arena_strdup(&j->arena, top);
    q->drop = j->drop = copy_strings(&j->arena, o->drop, o->drop_count);
    q->drop_count = j->drop_asked = o->drop_count;
    q->children = copy_strings(&j->arena, o->children, o->child_count);
    q->child_count = o->child_count;
    q->children_are_ours = true;
    q->bwlimit = o->bwlimit;
    j->dry_run = o->dry_run;
    if (o->format)
        j->format = arena_strdup(&j->arena, o->format);
    if (!q->top || !q->drop || !q->children || (o->format && !j->format))
        return err_nomem(err);
    return o->direction ? set_direction(q, o->direction, err) : 0;
}

QSTILL_PUBLIC
int qstill_image_merge(const char *top,
                       const struct qstill_image_merge_options *options,
                       struct qstill_job **out, struct qstill_error *caller)
{
    struct qstill_error scratch, *err = err_door(caller, &scratch);
    struct qstill_image_merge_options o;
    struct merge_job *j = calloc(1, sizeof(*j));
    struct qstill_job *job;

    if (!j)
        return err_nomem(err);
    if (options_take(&o, sizeof(o), options, "merge", err) < 0 ||
        set_request(j, top, &o, err) < 0) {
        job_free(j);
        return err->code;
    }
    if (job_new(&job, &ops, j, err) < 0)
        return err->code;
    j->job = job;
    *out = job;
    return 0;
}

QSTILL_PUBLIC
void qstill_image_merge_result(const struct qstill_job *job,
                               struct qstill_image_merge_result *out)
{
    const struct merge_job *j = job_ctx(job, &ops);

    *out = j ? j->result : (struct qstill_image_merge_result){.direction = ""};
}

QSTILL_PUBLIC
int qstill_image_recover(const char *path, bool *did,
                         struct qstill_error *caller)
{
    struct qstill_error scratch, *err = err_door(caller, &scratch);
    CLEANUP(freep) char *dir = path_dir(path);

    if (!dir)
        return err_nomem(err);
    return merge_recover_dir(io_real(), dir[0] ? dir : ".", did, err);
}
