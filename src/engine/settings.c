/* SPDX-License-Identifier: MIT */
#include "settings.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "json.h"
#include "session.h"
#include "start.h"

#define SETTINGS_VERSION 1
#define TLS_CREDS        "tls-creds"
#define CAPABILITIES_MAX 256 /* QEMU 10.0 has 24 */

void settings_fini(struct settings *t)
{
    qmp_names_fini(&t->on);
    free(t->tls_creds);
    t->tls_creds = NULL;
}

static bool names_have(const struct qmp_names *n, const char *name)
{
    for (size_t i = 0; i < n->count; i++)
        if (strcmp(n->items[i], name) == 0)
            return true;
    return false;
}

static int settings_write(struct session *s, const struct settings *t,
                          struct qstill_error *err)
{
    CLEANUP(json_decrefp)
    json_t *root =
        json_pack("{si sI sI so sI sI ss}", "version", SETTINGS_VERSION, "pid",
                  (json_int_t)s->pid, "pidStart",
                  (json_int_t)(s->pid ? start_time_of(s->pid) : 0),
                  "capabilities", json_out_strings(t->on.items, t->on.count),
                  "maxBandwidth", (json_int_t)t->bandwidth, "downtimeLimit",
                  (json_int_t)t->downtime, "tlsCreds", t->tls_creds);

    return json_file_write(s->vmfd, SETTINGS_FILE, root, -1, err);
}

int settings_keep(struct session *s, struct settings *out,
                  struct qstill_error *err)
{
    settings_fini(out);
    if (qmp_migrate_capabilities_on(s->qmp, &out->on, err) < 0 ||
        qmp_migrate_get_parameter(s->qmp, "max-bandwidth", &out->bandwidth,
                                  err) < 0 ||
        qmp_migrate_get_parameter(s->qmp, "downtime-limit", &out->downtime,
                                  err) < 0 ||
        qmp_migrate_get_text(s->qmp, TLS_CREDS, &out->tls_creds, err) < 0)
        return err->code;
    return settings_write(s, out, err);
}

int settings_enable(struct session *s, const struct settings *was,
                    const char *capability, struct qstill_error *err)
{
    CLEANUP(freep)
    struct qmp_capability *caps = calloc(was->on.count + 2, sizeof(*caps));
    size_t n = 0;

    if (!caps)
        return err_nomem(err);
    for (size_t i = 0; i < was->on.count; i++)
        if (strcmp(was->on.items[i], "events") != 0 &&
            (!capability || strcmp(was->on.items[i], capability) != 0))
            caps[n++] = (struct qmp_capability){was->on.items[i], false};
    caps[n++] = (struct qmp_capability){"events", true};
    if (capability)
        caps[n++] = (struct qmp_capability){capability, true};
    return qmp_migrate_set_capabilities(s->qmp, caps, n, err);
}

int settings_clear_tls(struct session *s, const struct settings *was,
                       struct qstill_error *err)
{
    return was->tls_creds[0] ? qmp_migrate_set_text(s->qmp, TLS_CREDS, "", err)
                             : 0;
}

static int put_tls_back(struct session *s, const struct settings *was,
                        struct qstill_error *err)
{
    return was->tls_creds && was->tls_creds[0]
               ? qmp_migrate_set_text(s->qmp, TLS_CREDS, was->tls_creds, err)
               : 0;
}

/* Those of `list` that `other` has not. */
static int set_missing(struct session *s, const struct qmp_names *list,
                       const struct qmp_names *other, bool on,
                       struct qstill_error *err)
{
    CLEANUP(freep)
    struct qmp_capability *caps = calloc(list->count + 1, sizeof(*caps));
    size_t n = 0;

    if (!caps)
        return err_nomem(err);
    for (size_t i = 0; i < list->count; i++)
        if (!names_have(other, list->items[i]))
            caps[n++] = (struct qmp_capability){list->items[i], on};
    return n ? qmp_migrate_set_capabilities(s->qmp, caps, n, err) : 0;
}

void settings_put_back(struct session *s, const struct settings *was)
{
    CLEANUP(qmp_names_fini) struct qmp_names now = QMP_NAMES_INIT;
    struct qmp_parameter p[] = {{"max-bandwidth", was->bandwidth},
                                {"downtime-limit", was->downtime}};
    struct qstill_error why = {0};

    /* Ours go first: some of the user's exclude them. */
    if (qmp_migrate_set_parameters(s->qmp, p, ARRAY_LEN(p), &why) == 0 &&
        put_tls_back(s, was, &why) == 0 &&
        qmp_migrate_capabilities_on(s->qmp, &now, &why) == 0 &&
        set_missing(s, &now, &was->on, false, &why) == 0 &&
        set_missing(s, &was->on, &now, true, &why) == 0)
        unlinkat(s->vmfd, SETTINGS_FILE, 0);
}

bool settings_are_kept(int vmfd)
{
    return faccessat(vmfd, SETTINGS_FILE, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

/* False: damaged, or of another QEMU. */
static bool read_kept(const struct session *s, struct json_file *file,
                      struct arena *arena, struct settings *out)
{
    struct qstill_error why = {0};
    struct json_in in = {SETTINGS_FILE, arena, &why};
    uint64_t pid, start;

    if (json_file_read(s->vmfd, SETTINGS_FILE, SETTINGS_VERSION, file, &why) <
        0)
        return false;
    pid = json_in_u64(&in, file->root, "pid", JSON_REQUIRED);
    start = json_in_u64(&in, file->root, "pidStart", JSON_REQUIRED);
    out->on.items =
        json_in_strings(&in, file->root, "capabilities", CAPABILITIES_MAX,
                        JSON_OPTIONAL, &out->on.count);
    out->bandwidth =
        (int64_t)json_in_u64(&in, file->root, "maxBandwidth", JSON_REQUIRED);
    out->downtime =
        (int64_t)json_in_u64(&in, file->root, "downtimeLimit", JSON_REQUIRED);
    /* older ones have none; it is the arena's */
    out->tls_creds = (char *)(uintptr_t)json_in_string(
        &in, file->root, "tlsCreds", JSON_OPTIONAL);
    return why.code == 0 && pid == (uint64_t)s->pid &&
           (pid == 0 || start == start_time_of(s->pid));
}

void settings_mend(struct session *s)
{
    CLEANUP(json_file_fini) struct json_file file = JSON_FILE_INIT;
    struct arena arena = ARENA_INIT;
    struct settings was = SETTINGS_INIT; /* its names are the arena's */

    if (!settings_are_kept(s->vmfd))
        return;
    if (s->qmp && read_kept(s, &file, &arena, &was))
        settings_put_back(s, &was);
    else
        unlinkat(s->vmfd, SETTINGS_FILE, 0);
    arena_fini(&arena);
}
