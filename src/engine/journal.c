/* SPDX-License-Identifier: MIT */
#include "journal.h"

#include <fcntl.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

#include "base/publish.h"
#include "json.h"
#include "store.h"
#include "vmrecord.h"

#define JOURNAL_VERSION 1

static const char *const op_names[] = {"create", "revert", "delete", "undo"};
static const char *const phase_names[] = {"begun", "switching", "committed"};

/* Strings that are only there while a layer is being merged. */
static const struct {
    const char *key;
    size_t offset;
} work_keys[] = {
    {"lowering", offsetof(struct journal, lowering)},
    {"lowered", offsetof(struct journal, lowered)},
    {"loweredFormat", offsetof(struct journal, lowered_format)},
    {"pullInto", offsetof(struct journal, pull_into)},
    {"pullFrom", offsetof(struct journal, pull_from)},
    {"pullFromFormat", offsetof(struct journal, pull_from_format)},
    {"swapDisk", offsetof(struct journal, swap_disk)},
    {"swapFrom", offsetof(struct journal, swap_from)},
    {"swapTo", offsetof(struct journal, swap_to)},
    {"swapAbove", offsetof(struct journal, swap_above)},
};

static const char **work_member(const struct journal *j, size_t i)
{
    return (const char **)((uintptr_t)j + work_keys[i].offset);
}

static void read_work(struct json_in *in, const struct json_value *root,
                      struct journal *j)
{
    const struct json_value *o =
        json_in_object(in, root, "work", JSON_OPTIONAL);

    for (size_t i = 0; o && i < ARRAY_LEN(work_keys); i++)
        *work_member(j, i) =
            json_in_string(in, o, work_keys[i].key, JSON_OPTIONAL);
}

static json_t *work_json(const struct journal *j)
{
    json_t *o = json_object();

    for (size_t i = 0; o && i < ARRAY_LEN(work_keys); i++)
        if (*work_member(j, i))
            json_object_set_new(o, work_keys[i].key,
                                json_out_string(*work_member(j, i)));
    return o;
}

static unsigned word_in(struct json_in *in, const struct json_value *root,
                        const char *key, const char *const *words, size_t n)
{
    const char *s = json_in_string(in, root, key, JSON_REQUIRED);

    for (unsigned i = 0; s && i < n; i++)
        if (strcmp(s, words[i]) == 0)
            return i;
    if (in->err->code == 0)
        err_set(in->err, QSTILL_E_CORRUPT, "%s is damaged: unknown %s '%s'",
                in->file, key, s);
    return 0;
}

static void read_disks(struct json_in *in, const struct json_value *root,
                       struct journal *j)
{
    const struct json_value *o;
    size_t n =
        json_in_array(in, root, "disks", VM_DISKS_MAX, JSON_OPTIONAL, &o);

    j->disks = arena_array(&j->arena, n + 1, sizeof(*j->disks));
    if (!j->disks) {
        err_nomem(in->err);
        return;
    }
    for (size_t i = 0; i < n; i++, o = o->next) {
        struct journal_disk *d = &j->disks[i];

        d->disk = json_in_string(in, o, "disk", JSON_REQUIRED);
        d->old_path = json_in_string(in, o, "oldPath", JSON_REQUIRED);
        d->old_format = json_in_string(in, o, "oldFormat", JSON_REQUIRED);
        d->new_path = json_in_string(in, o, "newPath", JSON_REQUIRED);
        d->new_format = json_in_string(in, o, "newFormat", JSON_REQUIRED);
    }
    j->disk_count = n;
}

static void read_loads(struct json_in *in, const struct json_value *root,
                       struct journal *j)
{
    const struct json_value *o;
    size_t n =
        json_in_array(in, root, "loads", JOURNAL_LOADS_MAX, JSON_OPTIONAL, &o);

    j->loads = arena_array(&j->arena, n + 1, sizeof(*j->loads));
    if (!j->loads) {
        err_nomem(in->err);
        return;
    }
    for (size_t i = 0; i < n; i++, o = o->next) {
        j->loads[i].block = json_in_string(in, o, "block", JSON_REQUIRED);
        j->loads[i].file = json_in_string(in, o, "file", JSON_REQUIRED);
    }
    j->load_count = n;
}

int journal_load(int vmfd, struct journal *out, struct qstill_error *err)
{
    CLEANUP(json_file_fini) struct json_file file = JSON_FILE_INIT;
    const struct json_value *root;
    struct journal j = {.arena = ARENA_INIT};
    struct json_in in = {STORE_JOURNAL, &j.arena, err};

    if (json_file_read(vmfd, STORE_JOURNAL, JOURNAL_VERSION, &file, err) < 0)
        return err->code;
    root = file.root;
    j.op = word_in(&in, root, "op", op_names, ARRAY_LEN(op_names));
    j.phase = word_in(&in, root, "phase", phase_names, ARRAY_LEN(phase_names));
    j.snapshot = json_in_string(&in, root, "snapshot", JSON_REQUIRED);
    j.tag = json_in_string(&in, root, "tag", JSON_OPTIONAL);
    j.keep_trash = json_in_u64(&in, root, "keepTrash", JSON_OPTIONAL);
    j.mapped = json_in_string(&in, root, "mapped", JSON_OPTIONAL);
    j.undone = json_in_string(&in, root, "undone", JSON_OPTIONAL);
    j.old_current = json_in_string(&in, root, "oldCurrent", JSON_OPTIONAL);
    j.was_running = json_in_bool(&in, root, "wasRunning", JSON_OPTIONAL);
    j.resumed = json_in_bool(&in, root, "resumed", JSON_OPTIONAL);
    j.freezing = json_in_bool(&in, root, "freezing", JSON_OPTIONAL);
    j.inplace = json_in_bool(&in, root, "inplace", JSON_OPTIONAL);
    j.pid = json_in_u64(&in, root, "pid", JSON_OPTIONAL);
    j.pid_start = json_in_u64(&in, root, "pidStart", JSON_OPTIONAL);
    j.reset = json_in_bool(&in, root, "reset", JSON_OPTIONAL);
    j.pivot_disk = json_in_string(&in, root, "pivotDisk", JSON_OPTIONAL);
    j.pivot_from = json_in_string(&in, root, "pivotFrom", JSON_OPTIONAL);
    j.pivot_to = json_in_string(&in, root, "pivotTo", JSON_OPTIONAL);
    j.pivot_to_format =
        json_in_string(&in, root, "pivotToFormat", JSON_OPTIONAL);
    j.pivot_live = json_in_bool(&in, root, "pivotLive", JSON_OPTIONAL);
    j.rewriting = json_in_string(&in, root, "rewriting", JSON_OPTIONAL);
    j.keep_hidden = json_in_bool(&in, root, "keepHidden", JSON_OPTIONAL);
    j.tell_lost = json_in_bool(&in, root, "tellLost", JSON_OPTIONAL);
    read_work(&in, root, &j);
    media_from_json(&in, root, &j.media);
    j.rewrites = json_in_strings(&in, root, "rewrites", STORE_NAMES_MAX,
                                 JSON_OPTIONAL, &j.rewrite_count);
    j.ids = json_in_strings(&in, root, "ids", STORE_NAMES_MAX, JSON_OPTIONAL,
                            &j.id_count);
    read_disks(&in, root, &j);
    read_loads(&in, root, &j);
    j.boot = json_in_string(&in, root, "boot", JSON_OPTIONAL);
    j.kept = json_in_string(&in, root, "kept", JSON_OPTIONAL);
    if (err->code < 0) {
        journal_fini(&j);
        return err->code;
    }
    *out = j;
    return 0;
}

static json_t *disks_json(const struct journal *j)
{
    json_t *array = json_array();

    for (size_t i = 0; array && i < j->disk_count; i++) {
        const struct journal_disk *d = &j->disks[i];

        json_array_append_new(
            array,
            json_pack("{so so so so so}", "disk", json_out_string(d->disk),
                      "oldPath", json_out_string(d->old_path), "oldFormat",
                      json_out_string(d->old_format), "newPath",
                      json_out_string(d->new_path), "newFormat",
                      json_out_string(d->new_format)));
    }
    return array;
}

static json_t *loads_json(const struct journal *j)
{
    json_t *array = json_array();

    for (size_t i = 0; array && i < j->load_count; i++)
        json_array_append_new(
            array,
            json_pack("{so so}", "block", json_out_string(j->loads[i].block),
                      "file", json_out_string(j->loads[i].file)));
    return array;
}

int journal_save(int vmfd, const struct journal *j, struct qstill_error *err)
{
    CLEANUP(json_decrefp)
    json_t *root = json_pack(
        "{si ss ss so so sI so so so so sb sb sb sI sI sb so so so so so so so "
        "sb so sb sb sb so so so so}",
        "version", JOURNAL_VERSION, "op", op_names[j->op], "phase",
        phase_names[j->phase], "snapshot", json_out_string(j->snapshot), "tag",
        json_out_string(j->tag), "keepTrash", (json_int_t)j->keep_trash,
        "mapped", json_out_string(j->mapped), "undone",
        json_out_string(j->undone), "ids",
        json_out_strings(j->ids, j->id_count), "oldCurrent",
        json_out_string(j->old_current), "wasRunning", j->was_running,
        "freezing", j->freezing, "inplace", j->inplace, "pid",
        (json_int_t)j->pid, "pidStart", (json_int_t)j->pid_start, "reset",
        j->reset, "pivotDisk", json_out_string(j->pivot_disk), "pivotFrom",
        json_out_string(j->pivot_from), "pivotTo", json_out_string(j->pivot_to),
        "pivotToFormat", json_out_string(j->pivot_to_format), "rewriting",
        json_out_string(j->rewriting), "disks", disks_json(j), "work",
        work_json(j), "keepHidden", j->keep_hidden, "rewrites",
        json_out_strings(j->rewrites, j->rewrite_count), "tellLost",
        j->tell_lost, "pivotLive", j->pivot_live, "resumed", j->resumed,
        "media", media_to_json(&j->media), "loads", loads_json(j), "boot",
        json_out_string(j->boot), "kept", json_out_string(j->kept));

    /* what needs room for more than that is not to begin */
    return json_file_write(vmfd, STORE_JOURNAL, root,
                           j->phase == JOURNAL_BEGUN ? -1 : vmfd, err);
}

int journal_remove(int vmfd, struct qstill_error *err)
{
    return publish_unlink(vmfd, STORE_JOURNAL, err);
}

void journal_forget_pivot(struct journal *j)
{
    j->pivot_disk = j->pivot_from = j->pivot_to = j->pivot_to_format = NULL;
    j->pivot_live = false;
}

bool journal_stopped_it(const struct journal *j)
{
    return j->was_running && !j->resumed;
}

const char *journal_op_name(enum journal_op op)
{
    return op_names[op];
}

bool journal_exists(int vmfd)
{
    return faccessat(vmfd, STORE_JOURNAL, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

void journal_fini(struct journal *j)
{
    arena_fini(&j->arena);
    memset(j, 0, sizeof(*j));
}
