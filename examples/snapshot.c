/* SPDX-License-Identifier: MIT */
/*
 * usage: snapshot VM NAME: a snapshot with memory, and what it cost.
 *
 * cc snapshot.c $(pkg-config --cflags --libs qstill)
 */
#include <stdio.h>

#include "qstill.h"

static void tick(void *user, const struct qstill_progress *p)
{
    (void)user;
    if (p->bytes_total)
        fprintf(stderr, "\r%s %3.0f %%", p->phase,
                100.0 * (double)p->bytes_done / (double)p->bytes_total);
}

static int take(struct qstill_store *store, const char *vm, const char *name,
                struct qstill_error *err)
{
    struct qstill_create_options options = QSTILL_CREATE_OPTIONS_INIT;
    struct qstill_snapshot_list *list = NULL;
    const struct qstill_snapshot *s;
    struct qstill_job *job = NULL;

    options.memory = true;
    /* An event loop of your own would poll qstill_job_fd() and call
     * qstill_job_step(); this does the same and waits. */
    if (qstill_create(store, vm, name, &options, &job, err) == 0 &&
        qstill_job_run(job, tick, NULL, err) == 0 &&
        qstill_snapshot_list(store, vm, &list, err) == 0 &&
        qstill_snapshot_find(list, qstill_create_id(job), &s, err) == 0)
        printf("\n%s: mode %s, the guest stood still for %.1f ms\n", s->id,
               s->mode, s->pause_ms);
    qstill_snapshot_list_free(list);
    qstill_job_free(job); /* an unfinished job would be undone here */
    return err->code;
}

int main(int argc, char **argv)
{
    struct qstill_error err = {0};
    struct qstill_store *store;

    if (argc != 3) {
        fprintf(stderr, "usage: %s VM NAME\n", argv[0]);
        return 2;
    }
    if (qstill_store_open(&store, NULL, &err) == 0) {
        take(store, argv[1], argv[2], &err);
        qstill_store_close(store);
    }
    if (err.code < 0)
        fprintf(stderr, "%s: %s\n", qstill_code_name(err.code), err.message);
    return -err.code;
}
