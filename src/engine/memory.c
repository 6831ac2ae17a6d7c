/* SPDX-License-Identifier: MIT */
/* Reading back what memory_capture.c made: restore and verify. */
#include "memory.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

#include "base/buf.h"
#include "base/checked.h"
#include "base/options.h"
#include "job.h"
#include "memstate/load.h"
#include "memstate/verify.h"

int memory_take_regions(struct arena *arena, const struct qstill_region *from,
                        size_t count, struct qstill_region **out,
                        struct qstill_error *err)
{
    struct qstill_region *list;
    uint64_t end;

    if (count == 0 || count > QSTILL_REGIONS_MAX)
        return err_set(err, QSTILL_E_USAGE,
                       "%zu regions are not 1 to %d of them", count,
                       QSTILL_REGIONS_MAX);
    list = arena_array(arena, count, sizeof(*list));
    if (!list)
        return err_nomem(err);
    for (size_t i = 0; i < count; i++) {
        list[i] = from[i];
        if (!from[i].id || !from[i].id[0] || strlen(from[i].id) > RAMSET_ID_MAX)
            return err_set(err, QSTILL_E_USAGE,
                           "the id of region %zu is not 1 to %u bytes long", i,
                           RAMSET_ID_MAX);
        if ((uintptr_t)from[i].address % RAMSET_PAGE != 0 ||
            from[i].length % RAMSET_PAGE != 0 || from[i].length == 0 ||
            !from[i].address ||
            add_u64((uintptr_t)from[i].address, from[i].length, &end))
            return err_set(err, QSTILL_E_USAGE,
                           "region '%.100s' is not a number of whole pages",
                           from[i].id);
        for (size_t k = 0; k < i; k++) {
            uintptr_t other = (uintptr_t)from[k].address;

            if (strcmp(from[k].id, from[i].id) == 0)
                return err_set(err, QSTILL_E_USAGE,
                               "two regions have the id '%.100s'", from[i].id);
            if (other < end &&
                (uintptr_t)from[i].address < other + from[k].length)
                return err_set(err, QSTILL_E_USAGE,
                               "the regions '%.100s' and '%.100s' overlap",
                               from[k].id, from[i].id);
        }
        list[i].id = arena_strdup(arena, from[i].id);
        if (!list[i].id)
            return err_nomem(err);
    }
    *out = list;
    return 0;
}

int memory_called(int result, const char *what, struct qstill_error *err)
{
    if (result == 0) {
        err->message[0] = '\0'; /* or the next one's would seem filled */
        return err_clear(err);
    }
    err->message[sizeof(err->message) - 1] = '\0';
    err->hint[sizeof(err->hint) - 1] = '\0';
    if (err->code == 0 && !err->message[0])
        return err_set(err, result < 0 ? result : QSTILL_E_FAILED,
                       "%s: the VMM's callback returned %d", what, result);
    if (err->code >= 0)
        err->code = result < 0 ? result : QSTILL_E_FAILED;
    return err_wrap(err, "%s", what);
}

int memory_open_dir(const char *dir, int *fd, struct qstill_error *err)
{
    *fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return *fd < 0 ? err_errno(err, errno, "%s", dir) : 0;
}

/* ---------------------------------------------------------------- restore */

struct restoring {
    struct qstill_job *job;
    struct qstill_vmm vmm;
    struct load *load;
};

static int load_step(void *ctx, bool *done, struct qstill_error *err)
{
    CLEANUP(buf_fini) struct buf state = BUF_INIT;
    struct restoring *r = ctx;
    struct load_status st;

    load_poll(r->load, &st);
    job_measure(r->job, st.bytes_done, st.bytes_total);
    *done = st.complete;
    if (!st.complete)
        return job_wait_on(r->job, load_fd(r->load), err);
    if (load_finish(r->load, &state, err) < 0)
        return err->code;
    if (!r->vmm.load)
        return 0;
    return memory_called(r->vmm.load(r->vmm.user, state.data, state.len, err),
                         "loading the device state", err);
}

static void load_undo(void *ctx, struct qstill_error *err)
{
    struct restoring *r = ctx;

    (void)err;
    /* Nobody writes to the regions when the step has failed. */
    load_close(r->load);
    r->load = NULL;
}

static void restoring_free(void *ctx)
{
    struct restoring *r = ctx;

    load_close(r->load);
    free(r);
}

static const struct job_phase load_phases[] = {
    {"memory", NULL, load_step, load_undo},
    {NULL, NULL, NULL, NULL},
};
static const struct job_ops load_ops = {load_phases, restoring_free};

static int open_load(struct load **out, const char *dir,
                     const struct qstill_region *regions, size_t count,
                     struct qstill_error *err)
{
    CLEANUP(arena_fini) struct arena arena = ARENA_INIT;
    CLEANUP(closep) int fd = -1;
    struct qstill_region *list = NULL;
    struct load_place *places;

    if (memory_take_regions(&arena, regions, count, &list, err) < 0 ||
        memory_open_dir(dir, &fd, err) < 0)
        return err->code;
    places = arena_array(&arena, count, sizeof(*places));
    if (!places)
        return err_nomem(err);
    for (size_t i = 0; i < count; i++)
        places[i] =
            (struct load_place){list[i].id, list[i].address, list[i].length};
    if (load_open(out, fd, places, count, err) < 0)
        return err_wrap(err, "%.200s", dir);
    return 0;
}

QSTILL_PUBLIC int
qstill_memory_restore(const char *dir, const struct qstill_region *regions,
                      size_t count, const struct qstill_vmm *vmm,
                      struct qstill_job **out, struct qstill_error *caller_err)
{
    struct qstill_error scratch, *err = err_door(caller_err, &scratch);
    struct restoring *r = calloc(1, sizeof(*r));

    if (!r)
        return err_nomem(err);
    if (options_take(&r->vmm, sizeof(r->vmm), vmm, "VMM", err) < 0 ||
        open_load(&r->load, dir, regions, count, err) < 0) {
        restoring_free(r);
        return err->code;
    }
    if (job_new(&r->job, &load_ops, r, err) < 0)
        return err->code;
    *out = r->job;
    return 0;
}

/* ----------------------------------------------------------------- verify */

struct verifying {
    struct qstill_job *job;
    struct verify *verify;
};

static int verify_step(void *ctx, bool *done, struct qstill_error *err)
{
    struct verifying *v = ctx;
    struct verify_status st;

    verify_poll(v->verify, &st);
    job_measure(v->job, st.bytes_done, st.bytes_total);
    *done = st.complete;
    if (!st.complete)
        return job_wait_on(v->job, verify_fd(v->verify), err);
    return verify_finish(v->verify, err);
}

static void verifying_free(void *ctx)
{
    struct verifying *v = ctx;

    verify_close(v->verify);
    free(v);
}

static const struct job_phase verify_phases[] = {
    {"verify", NULL, verify_step, NULL},
    {NULL, NULL, NULL, NULL},
};
static const struct job_ops verify_ops = {verify_phases, verifying_free};

static int open_verify(struct verify **out, const char *dir,
                       struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;
    struct verify_options o = {0};

    if (memory_open_dir(dir, &fd, err) < 0)
        return err->code;
    o.dirfd = fd;
    if (verify_open(out, &o, err) < 0)
        return err_wrap(err, "%.200s", dir);
    return 0;
}

QSTILL_PUBLIC int qstill_memory_verify(const char *dir, struct qstill_job **out,
                                       struct qstill_error *caller_err)
{
    struct qstill_error scratch, *err = err_door(caller_err, &scratch);
    struct verifying *v = calloc(1, sizeof(*v));

    if (!v)
        return err_nomem(err);
    if (open_verify(&v->verify, dir, err) < 0) {
        verifying_free(v);
        return err->code;
    }
    if (job_new(&v->job, &verify_ops, v, err) < 0)
        return err->code;
    *out = v->job;
    return 0;
}
