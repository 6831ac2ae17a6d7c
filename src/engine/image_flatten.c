/* SPDX-License-Identifier: MIT */
/* The public flatten: a job that plans, and one phase that does it. */
#include <stdlib.h>
#include <sys/stat.h>
#include <time.h>

#include "base/arena.h"
#include "base/options.h"
#include "image.h"
#include "job.h"
#include "qcow2/flatten.h"

struct flatten_job {
    struct qstill_job *job; /* ours; set once it exists */
    struct arena arena;
    struct flatten_request request;
    const char *format; /* of top; NULL: by its first bytes */
    bool dry_run;
    struct flatten *flatten;
    struct timespec start;
    struct qstill_image_flatten_result result;
};

static void job_free(void *ctx)
{
    struct flatten_job *j = ctx;

    flatten_close(j->flatten);
    arena_fini(&j->arena);
    free(j);
}

static double elapsed_ms(const struct flatten_job *j)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)(now.tv_sec - j->start.tv_sec) * 1e3 +
           (double)(now.tv_nsec - j->start.tv_nsec) / 1e6;
}

static int plan_enter(void *ctx, struct qstill_error *err)
{
    struct flatten_job *j = ctx;

    clock_gettime(CLOCK_MONOTONIC, &j->start);
    j->request.stop = job_stop(j->job);
    if (image_format_of(j->request.top, j->format, &j->request.format, err) <
            0 ||
        flatten_open(&j->flatten, io_real(), &j->request, err) < 0)
        return err->code;
    return flatten_describe(j->flatten, job_text(j->job), err);
}

static int copy_enter(void *ctx, struct qstill_error *err)
{
    struct flatten_job *j = ctx;

    (void)err;
    job_measure(j->job, 0, flatten_count(j->flatten).total);
    return 0;
}

static void account(struct flatten_job *j, struct flatten_count c)
{
    struct stat st;

    j->result =
        (struct qstill_image_flatten_result){.bytes_moved = c.total - c.shared,
                                             .bytes_cloned = c.shared,
                                             .ms = elapsed_ms(j)};
    /* XFS has allotted more than is written, until the file is closed */
    flatten_close(take_ptr(&j->flatten));
    if (!j->dry_run && stat(j->request.out, &st) == 0)
        j->result.bytes_stored = (uint64_t)st.st_blocks * 512;
}

static int copy_go(void *ctx, bool *done, struct qstill_error *err)
{
    struct flatten_job *j = ctx;
    struct flatten_count c;

    *done = j->dry_run;
    if (!j->dry_run && flatten_step(j->flatten, done, err) < 0)
        return err->code;
    c = flatten_count(j->flatten);
    job_measure(j->job, c.done, c.total);
    if (*done)
        account(j, c);
    else if (job_wait_on(j->job, flatten_fd(j->flatten), err) < 0)
        return err->code;
    return 0;
}

static void copy_undo(void *ctx, struct qstill_error *err)
{
    struct flatten_job *j = ctx;

    (void)err;
    flatten_close(take_ptr(&j->flatten));
}

static const struct job_phase phases[] = {
    {"plan", plan_enter, NULL, NULL},
    {"copy", copy_enter, copy_go, copy_undo},
    {NULL, NULL, NULL, NULL},
};

static const struct job_ops ops = {phases, job_free};

static int set_request(struct flatten_job *j, const char *top, const char *out,
                       const struct qstill_image_flatten_options *o,
                       struct qstill_error *err)
{
    struct flatten_request *q = &j->request;

    q->top = arena_strdup(&j->arena, top);
    q->out = arena_strdup(&j->arena, out);
    q->out_format = QCOW2_FORMAT_QCOW2;
    q->compress = o->compress;
    q->bwlimit = o->bwlimit;
    j->dry_run = o->dry_run;
    if (o->format)
        j->format = arena_strdup(&j->arena, o->format);
    if (!q->top || !q->out || (o->format && !j->format))
        return err_nomem(err);
    return o->output_format
               ? qcow2_format_parse(o->output_format, &q->out_format, err)
               : 0;
}

QSTILL_PUBLIC
int qstill_image_flatten(const char *top, const char *out,
                         const struct qstill_image_flatten_options *options,
                         struct qstill_job **job, struct qstill_error *caller)
{
    struct qstill_error scratch, *err = err_door(caller, &scratch);
    struct qstill_image_flatten_options o = QSTILL_IMAGE_FLATTEN_OPTIONS_INIT;
    struct flatten_job *j = calloc(1, sizeof(*j));
    struct qstill_job *made;

    if (!j)
        return err_nomem(err);
    if (options_take(&o, sizeof(o), options, "flatten", err) < 0 ||
        set_request(j, top, out, &o, err) < 0) {
        job_free(j);
        return err->code;
    }
    if (job_new(&made, &ops, j, err) < 0)
        return err->code;
    j->job = made;
    *job = made;
    return 0;
}

QSTILL_PUBLIC
void qstill_image_flatten_result(const struct qstill_job *job,
                                 struct qstill_image_flatten_result *out)
{
    const struct flatten_job *j = job_ctx(job, &ops);

    *out = j ? j->result : (struct qstill_image_flatten_result){0};
}
