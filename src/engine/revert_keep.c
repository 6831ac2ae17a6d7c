/* SPDX-License-Identifier: MIT */
/* The phase "keep": what the revert would lose becomes a snapshot, by a create
 * of its own. */
#include <stdio.h>
#include <string.h>

#include "base/clock.h"
#include "job.h"
#include "modes.h"
#include "ready.h"
#include "revert_impl.h"

/* Where no mode can be used it is refused, unless that is for the VM's own
 * devices: nobody could ever keep more of it than its disks. */
static int choose_memory(struct revert *r, struct qstill_error *err)
{
    struct qstill_error none = {0};
    struct mode_report modes;
    char faster[256];
    enum mode mode;

    if (modes_probe_cow_first(&r->s, &modes, err) < 0)
        return err->code;
    if (modes_choose(&modes, MODE_COUNT, !r->was_running, &mode, faster,
                     sizeof(faster), &none) == 0)
        return 0;
    if (!modes_is_for_good(&modes)) {
        *err = none;
        return err_wrap(err, "keeping the present state");
    }
    r->keep_why = arena_printf(&r->arena, "VM %s: %s", r->vm, none.message);
    return r->keep_why ? 0 : err_nomem(err);
}

int revert_keep_plan(struct revert *r, struct qstill_error *err)
{
    if (!r->o.keep)
        return 0;
    if (r->was_on && ready_has_halted(&r->s)) {
        r->keep_why = arena_printf(&r->arena, "VM %s is in state %s", r->vm,
                                   r->s.status.state);
        if (!r->keep_why)
            return err_nomem(err);
    } else if (r->was_on && choose_memory(r, err) < 0) {
        return err->code;
    }
    r->keep_memory = r->was_on && !r->keep_why;
    buf_printf(job_text(r->job), "the present state becomes a snapshot%s%s\n",
               r->keep_memory ? ", with memory"
               : r->keep_why  ? ", of the disks alone: "
                              : "",
               r->keep_why ? r->keep_why : "");
    return 0;
}

static void name_it(char *name, size_t size)
{
    char stamp[CLOCK_STAMP_LEN];
    uint64_t ns;
    size_t n;

    clock_stamp(stamp, &ns);
    n = (size_t)snprintf(name, size, "kept-");
    for (const char *p = stamp; *p && n + 1 < size; p++)
        if (*p >= '0' && *p <= '9')
            name[n++] = *p;
    /* two within a second must not collide */
    snprintf(name + n, size - n, "-%03u", (unsigned)(ns / 1000000 % 1000));
}

/* A create of its own, with a lock of its own. */
int revert_keep_enter(void *ctx, struct qstill_error *err)
{
    struct qstill_create_options o = QSTILL_CREATE_OPTIONS_INIT;
    struct revert *r = ctx;
    char name[80];

    if (!r->o.keep || r->o.dry_run)
        return 0;
    name_it(name, sizeof(name));
    o.description = "what the VM was before a revert";
    o.memory = r->keep_memory;
    if (r->keep_why)
        store_note(r->store, "%s: of what it is now the disks alone are kept",
                   r->keep_why);
    session_close(&r->s);
    r->session_open = false;
    return qstill_create(r->store, r->vm, name, &o, &r->keeping, err);
}

int revert_keep_step(void *ctx, bool *done, struct qstill_error *err)
{
    struct revert *r = ctx;

    *done = true;
    if (!r->keeping)
        return 0;
    if (qstill_job_step(r->keeping, done, err) < 0)
        return err_wrap(err, "keeping the present state");
    err_clear(err);
    if (!*done)
        return job_wait_on(r->job, qstill_job_fd(r->keeping), err);
    r->result.kept = arena_strdup(&r->arena, qstill_create_id(r->keeping));
    r->result.kept_memory = r->keep_memory;
    r->result.kept_reason = r->keep_why;
    if (!r->result.kept)
        return err_nomem(err);
    buf_printf(job_text(r->job), "kept the present state as snapshot %s\n",
               r->result.kept);
    if (job_wait_on(r->job, -1, err) < 0)
        return err->code;
    qstill_job_free(r->keeping);
    r->keeping = NULL;
    revert_lap(r, "keep");
    return revert_plan(r, err);
}
