/* SPDX-License-Identifier: MIT */
#include "job.h"

#include <string.h>

#include "client.h"
#include "deadline.h"
#include "field.h"

/* Between looks at a job whose event may have been lost. */
#define LOOK_AGAIN_MS 500
/* For one look, however short the wait. */
#define ANSWER_MS 30000

/* ----------------------------------------------------------------- starting */

/* NULL values are left out ("s:s*"); our own numbers are far below 2^63. */
int qmp_block_commit(struct qstill_qmp *q, const struct qmp_commit *c,
                     struct qstill_error *err)
{
    json_t *args = json_pack(
        "{s:s, s:s, s:s*, s:s*, s:s*, s:I, s:b, s:o*}", "job-id", c->job,
        "device", c->device, "top-node", c->top_node, "base-node", c->base_node,
        "backing-file", c->backing_file, "speed", (json_int_t)c->speed,
        "auto-dismiss", false, "auto-finalize", c->held ? json_false() : NULL);

    return client_call(q, "block-commit", args, NULL, err);
}

int qmp_block_stream(struct qstill_qmp *q, const struct qmp_stream *s,
                     struct qstill_error *err)
{
    json_t *args =
        json_pack("{s:s, s:s, s:s*, s:s*, s:s*, s:I, s:b}", "job-id", s->job,
                  "device", s->device, "base-node", s->base_node, "bottom",
                  s->bottom, "backing-file", s->backing_file, "speed",
                  (json_int_t)s->speed, "auto-dismiss", false);

    return client_call(q, "block-stream", args, NULL, err);
}

int qmp_snapshot_load(struct qstill_qmp *q, const char *job, const char *tag,
                      const char *vmstate, struct qstill_error *err)
{
    return client_call(q, "snapshot-load",
                       json_pack("{s:s, s:s, s:s, s:[s]}", "job-id", job, "tag",
                                 tag, "vmstate", vmstate, "devices", vmstate),
                       NULL, err);
}

/* ------------------------------------------------------------------ looking */

static enum qmp_job_state state_of(const char *status)
{
    static const struct {
        const char *status;
        enum qmp_job_state state;
    } words[] = {
        {"ready", QMP_JOB_READY},     {"standby", QMP_JOB_READY},
        {"pending", QMP_JOB_PENDING}, {"concluded", QMP_JOB_CONCLUDED},
        {"null", QMP_JOB_CONCLUDED},
    };

    for (size_t i = 0; i < ARRAY_LEN(words); i++)
        if (strcmp(status, words[i].status) == 0)
            return words[i].state;
    return QMP_JOB_BUSY;
}

static void job_fill(struct qmp_job *out, const json_t *v)
{
    const char *status = field_string(v, "status", "");

    out->state = state_of(status);
    field_printable(out->status, sizeof(out->status), status);
    field_printable(out->type, sizeof(out->type), field_string(v, "type", ""));
    field_printable(out->error, sizeof(out->error),
                    field_string(v, "error", ""));
    out->done = field_u64(v, "current-progress", 0);
    out->total = field_u64(v, "total-progress", 0);
}

int qmp_block_job_any(struct qstill_qmp *q, struct qmp_block_job *out,
                      bool *any, struct qstill_error *err)
{
    CLEANUP(json_decrefp) json_t *list = NULL;
    const json_t *first;

    if (client_ask(q, "query-block-jobs", &list, err) < 0)
        return err->code;
    first = json_array_get(list, 0);
    *any = first != NULL;
    if (!first)
        return 0;
    field_printable(out->id, sizeof(out->id),
                    field_string(first, "device", ""));
    field_printable(out->type, sizeof(out->type),
                    field_string(first, "type", ""));
    return 0;
}

static int read_within(struct qstill_qmp *q, const char *job,
                       uint32_t timeout_ms, struct qmp_job *out,
                       struct qstill_error *err)
{
    CLEANUP(json_decrefp) json_t *list = NULL;
    size_t i;
    json_t *v;

    if (qstill_qmp_execute(q, "query-jobs", NULL, timeout_ms, &list, err) < 0)
        return err->code;
    json_array_foreach(list, i,
                       v) if (strcmp(field_string(v, "id", ""), job) == 0)
    {
        job_fill(out, v);
        return 0;
    }
    return err_set(err, QSTILL_E_NOT_FOUND, "QEMU has no job '%s'", job);
}

int qmp_job_read(struct qstill_qmp *q, const char *job, struct qmp_job *out,
                 struct qstill_error *err)
{
    return read_within(q, job, 0, out, err);
}

/* Any news of the job: JOB_STATUS_CHANGE has its id, BLOCK_JOB_* has it as
 * "device". */
static bool is_of_job(const void *user, const json_t *event)
{
    const char *name = field_string(event, "event", "");
    const json_t *data = json_object_get(event, "data");
    const char *key = strcmp(name, "JOB_STATUS_CHANGE") == 0 ? "id" : "device";

    if (strcmp(key, "device") == 0 && strncmp(name, "BLOCK_JOB_", 10) != 0)
        return false;
    return strcmp(field_string(data, key, ""), user) == 0;
}

int qmp_job_wait(struct qstill_qmp *q, const char *job,
                 enum qmp_job_state until, uint32_t timeout_ms,
                 struct qmp_job *out, struct qstill_error *err)
{
    uint64_t deadline = deadline_in(timeout_ms);
    struct qmp_job now;

    for (;;) {
        CLEANUP(json_decrefp) json_t *event = NULL;
        int left = deadline_left(deadline);

        /* Some jobs keep QEMU from answering until they are over. */
        if (read_within(q, job, left > ANSWER_MS ? (uint32_t)left : ANSWER_MS,
                        &now, err) < 0)
            return err->code;
        if (now.state >= until) {
            *out = now;
            return 0;
        }
        if (left == 0)
            break;
        if (client_take_event(q, is_of_job, job,
                              deadline_in(left < LOOK_AGAIN_MS ? (uint32_t)left
                                                               : LOOK_AGAIN_MS),
                              &event, err) < 0)
            return err->code;
    }
    return err_set(err, QSTILL_E_UNREACHABLE,
                   "QEMU's job '%s' is still '%s' after %u ms", job, now.status,
                   timeout_ms);
}

/* ----------------------------------------------------------------- steering */

static int steer(struct qstill_qmp *q, const char *command, const char *job,
                 struct qstill_error *err)
{
    return client_call(q, command, json_pack("{s:s}", "id", job), NULL, err);
}

int qmp_job_complete(struct qstill_qmp *q, const char *job,
                     struct qstill_error *err)
{
    return steer(q, "job-complete", job, err);
}

int qmp_job_finalize(struct qstill_qmp *q, const char *job,
                     struct qstill_error *err)
{
    return steer(q, "job-finalize", job, err);
}

/* Whether the job is certainly over (or was never there). */
static bool is_over(struct qstill_qmp *q, const char *job)
{
    struct qstill_error ignored;
    struct qmp_job now;
    int rc = qmp_job_read(q, job, &now, &ignored);

    return rc == QSTILL_E_NOT_FOUND ||
           (rc == 0 && now.state == QMP_JOB_CONCLUDED);
}

int qmp_job_cancel(struct qstill_qmp *q, const char *job,
                   struct qstill_error *err)
{
    int rc = steer(q, "job-cancel", job, err);

    return rc == QSTILL_E_FAILED && is_over(q, job) ? err_clear(err) : rc;
}

int qmp_job_dismiss(struct qstill_qmp *q, const char *job,
                    struct qstill_error *err)
{
    struct qstill_error ignored;
    struct qmp_job now;
    int rc = steer(q, "job-dismiss", job, err);

    if (rc == QSTILL_E_FAILED &&
        qmp_job_read(q, job, &now, &ignored) == QSTILL_E_NOT_FOUND)
        return err_clear(err);
    return rc;
}

int qmp_job_set_speed(struct qstill_qmp *q, const char *job, uint64_t speed,
                      struct qstill_error *err)
{
    return client_call(
        q, "block-job-set-speed",
        json_pack("{s:s, s:I}", "device", job, "speed", (json_int_t)speed),
        NULL, err);
}

/* QEMU tells an errno by its words only, and is never translated; strerror()
 * may be. */
static bool says_no_space(const char *error)
{
    static const char *const words[] = {
        "No space left on device", "Disk quota exceeded", "File too large"};

    for (size_t i = 0; i < ARRAY_LEN(words); i++)
        if (strstr(error, words[i]))
            return true;
    return false;
}

int qmp_job_finish(struct qstill_qmp *q, const char *job, uint32_t timeout_ms,
                   struct qstill_error *err)
{
    struct qmp_job end;

    if (qmp_job_wait(q, job, QMP_JOB_CONCLUDED, timeout_ms, &end, err) < 0 ||
        qmp_job_dismiss(q, job, err) < 0)
        return err->code;
    if (end.error[0])
        return err_set(
            err, says_no_space(end.error) ? QSTILL_E_NO_SPACE : QSTILL_E_FAILED,
            "QEMU's job '%s' failed: %s", job, end.error);
    return 0;
}
