/* SPDX-License-Identifier: MIT */
/* VMs and snapshots as the verbs show them. The names in the JSON are a
 * contract (qstill(1)); new ones may come, these stay. */
#include "show.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "text.h"

void show_vm_json(struct out *o, const char *key, const struct qstill_vm *vm)
{
    out_object(o, key);
    out_text(o, "name", vm->name);
    out_text(o, "state", vm->state);
    out_text(o, "qmp", vm->qmp);
    out_text(o, "agent", vm->agent);
    out_text(o, "current", vm->current);
    out_uint(o, "snapshots", vm->snapshots);
    out_uint(o, "disks", vm->disks);
    out_end(o);
}

static void labels_json(struct out *o, const struct qstill_snapshot *s)
{
    char key[128];

    out_object(o, "labels");
    for (size_t i = 0; i < s->label_count; i++) {
        const char *label = s->labels[i], *equals = strchr(label, '=');

        if (!equals || (size_t)(equals - label) >= sizeof(key))
            continue; /* the library takes no such label */
        snprintf(key, sizeof(key), "%.*s", (int)(equals - label), label);
        out_text(o, key, equals + 1);
    }
    out_end(o);
}

static void disks_json(struct out *o, const struct qstill_snapshot *s)
{
    out_array(o, "disks");
    for (size_t i = 0; i < s->disk_count; i++) {
        const struct qstill_disk_info *d = &s->disks[i];

        out_object(o, NULL);
        out_text(o, "name", d->name);
        out_text(o, "path", d->path);
        out_text(o, "format", d->format);
        out_uint(o, "virtualSize", d->virtual_size);
        out_end(o);
    }
    out_end(o);
}

void show_snapshot_json(struct out *o, const char *key,
                        const struct qstill_snapshot *s)
{
    out_object(o, key);
    out_text(o, "id", s->id);
    out_text(o, "name", s->name);
    out_text(o, "description", s->description ? s->description : "");
    out_text(o, "parentId", s->parent_id);
    out_bool(o, "current", s->current);
    out_bool(o, "memoryIncluded", s->memory_included);
    out_bool(o, "quiesced", s->quiesced);
    out_real(o, "frozenMs", s->frozen_ms);
    out_uint(o, "frozenFilesystems", s->frozen_filesystems);
    out_uint(o, "mountedFilesystems", s->mounted_filesystems);
    out_text(o, "createdAt", s->created_at);
    out_uint(o, "sizeBytes", s->size_bytes);
    out_uint(o, "ownBytes", s->own_bytes);
    out_uint(o, "sharedBytes", s->shared_bytes);
    out_uint(o, "freedIfDeletedBytes", s->freed_bytes);
    out_text(o, "mode", s->mode);
    out_text(o, "modeReason", s->mode_reason ? s->mode_reason : "");
    out_real(o, "pauseMs", s->pause_ms);
    out_real(o, "longestStallMs", s->longest_stall_ms);
    out_uint(o, "memoryBytes", s->memory_bytes);
    out_uint(o, "memoryWritten", s->memory_written);
    out_uint(o, "memorySkipped", s->memory_bytes - s->memory_written);
    labels_json(o, s);
    disks_json(o, s);
    out_array(o, "children");
    for (size_t i = 0; i < s->child_count; i++)
        out_text(o, NULL, s->children[i]);
    out_end(o);
    out_end(o);
}

void show_damaged_json(struct out *o, const char *key,
                       const struct qstill_snapshot_list *list)
{
    out_array(o, key);
    for (size_t i = 0; i < list->damaged_count; i++) {
        out_object(o, NULL);
        out_text(o, "id", list->damaged[i].id);
        out_text(o, "message", list->damaged[i].message);
        out_text(o, "hint", list->damaged[i].hint);
        out_end(o);
    }
    out_end(o);
}

void show_damaged(const struct cli *cli, const char *vm,
                  const struct qstill_snapshot_list *list)
{
    for (size_t i = 0; !cli->quiet && i < list->damaged_count; i++) {
        const char *hint = list->damaged[i].hint;

        fputs("qstill: warning: ", stderr);
        text_safe(stderr, list->damaged[i].message);
        if (*hint) {
            fputs("\nhint: ", stderr);
            text_safe(stderr, hint);
            fputc('\n', stderr);
            continue;
        }
        fputs("\nhint: bring its manifest.json back from a backup, or give it "
              "up: qstill delete ",
              stderr);
        text_safe(stderr, vm);
        fputc(' ', stderr);
        text_safe(stderr, list->damaged[i].id);
        fputc('\n', stderr);
    }
}

void show_lines_json(struct out *o, const char *key, const char *text)
{
    out_array(o, key);
    while (*text) {
        size_t n = strcspn(text, "\n");

        out_text_n(o, NULL, text, n);
        text += n + (text[n] == '\n');
    }
    out_end(o);
}

void show_plan(const struct cli *cli, const struct qstill_job *job)
{
    const char *text = qstill_job_text(job);

    if (cli->json) {
        struct out o = OUT_INIT(stdout);

        out_object(&o, NULL);
        show_lines_json(&o, "plan", text);
        out_end(&o);
        return;
    }
    text_safe_lines(stdout, text);
}

void show_account(const struct cli *cli, const struct qstill_job *job)
{
    if (cli->verbose)
        text_safe_lines(stderr, qstill_job_text(job));
}

void show_notes(const struct cli *cli, const struct qstill_job *job)
{
    for (const char *at = qstill_job_text(job); *at && !cli->quiet;) {
        size_t n = strcspn(at, "\n");

        if (strncmp(at, "note: ", 6) == 0) {
            text_safe_n(stderr, at, n);
            fputc('\n', stderr);
        }
        at += n + (at[n] == '\n');
    }
}

void show_words(const struct cli *cli, const char *fmt, ...)
{
    char text[1024];
    va_list ap;

    if (cli->json || cli->quiet)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    text_safe(stderr, text);
    fputc('\n', stderr);
}
