/* SPDX-License-Identifier: MIT */
/* The public comparison of two images: a job that reads the tables, then the
 * data. */
#include <stdlib.h>
#include <string.h>

#include "image.h"
#include "job.h"
#include "qcow2/compare.h"

struct compare_job {
    struct qstill_job *job;
    struct compare *compare;
};

static void job_free(void *ctx)
{
    struct compare_job *j = ctx;

    compare_close(j->compare);
    free(j);
}

static int load_enter(void *ctx, struct qstill_error *err)
{
    struct compare_job *j = ctx;

    return compare_load(j->compare, job_stop(j->job), err);
}

static int go(void *ctx, bool *done, struct qstill_error *err)
{
    struct compare_job *j = ctx;
    uint64_t at, total;

    if (compare_step(j->compare, done, err) < 0)
        return err->code;
    compare_progress(j->compare, &at, &total);
    job_measure(j->job, at, total);
    return *done ? 0 : job_wait_on(j->job, compare_fd(j->compare), err);
}

static const struct job_phase phases[] = {
    {"load", load_enter, NULL, NULL},
    {"compare", NULL, go, NULL},
    {NULL, NULL, NULL, NULL},
};

static const struct job_ops ops = {phases, job_free};

static int open_side(struct chain **out, const char *path, const char *format,
                     struct qstill_error *err)
{
    enum qcow2_format f;

    if (image_format_of(path, format, &f, err) < 0)
        return err->code;
    return chain_open(out, io_real(), path, f, CHAIN_LOCKED, err);
}

static int open_both(struct compare **out, const char *a, const char *a_format,
                     const char *b, const char *b_format,
                     struct qstill_error *err)
{
    CLEANUP(chain_closep) struct chain *x = NULL;
    CLEANUP(chain_closep) struct chain *y = NULL;

    if (open_side(&x, a, a_format, err) < 0 ||
        open_side(&y, b, b_format, err) < 0)
        return err->code;
    return compare_open(out, take_ptr(&x), take_ptr(&y), err);
}

QSTILL_PUBLIC
int qstill_image_compare(const char *a, const char *a_format, const char *b,
                         const char *b_format, struct qstill_job **out,
                         struct qstill_error *caller)
{
    struct qstill_error scratch, *err = err_door(caller, &scratch);
    struct compare_job *j = calloc(1, sizeof(*j));
    struct qstill_job *job;

    if (!j)
        return err_nomem(err);
    if (open_both(&j->compare, a, a_format, b, b_format, err) < 0) {
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
bool qstill_image_compare_equal(const struct qstill_job *job, uint64_t *offset)
{
    const struct compare_job *j = job_ctx(job, &ops);
    uint64_t at;
    bool equal = j && compare_equal(j->compare, &at);

    if (j && !equal && offset)
        *offset = at;
    return equal;
}
