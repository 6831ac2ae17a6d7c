/* SPDX-License-Identifier: MIT */
/* qstill info: all that is known of one snapshot. */
#include "verbs.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#include "args.h"
#include "find.h"
#include "show.h"
#include "text.h"

static void line(const char *title, const char *fmt, ...) PRINTF_LIKE(2, 3);

static void line(const char *title, const char *fmt, ...)
{
    char text[4352]; /* a path and some words */
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    printf("%-13s", title);
    text_safe(stdout, text);
    putchar('\n');
}

static const char *name_of(const struct qstill_snapshot_list *list,
                           const char *id)
{
    for (size_t i = 0; i < list->count; i++)
        if (strcmp(list->snapshots[i].id, id) == 0)
            return list->snapshots[i].name;
    return "?";
}

static void memory_lines(const struct qstill_snapshot *s)
{
    char ram[TEXT_SIZE_MAX], stored[TEXT_SIZE_MAX], zero[TEXT_SIZE_MAX];

    if (!s->memory_included) {
        line("memory:", "no");
        return;
    }
    line("memory:", "%s, %s stored, %s skipped (zero)",
         text_size(ram, s->memory_bytes), text_size(stored, s->memory_written),
         text_size(zero, s->memory_bytes - s->memory_written));
    line("mode:", s->mode_reason && s->mode_reason[0] ? "%s (%s)" : "%s%s",
         s->mode, s->mode_reason ? s->mode_reason : "");
    line("pause:", "%.1f ms, longest stall after it %.1f ms", s->pause_ms,
         s->longest_stall_ms);
}

static void quiesced_line(const struct qstill_snapshot *s)
{
    unsigned long long frozen = s->frozen_filesystems,
                       mounted = s->mounted_filesystems;

    if (!s->quiesced)
        line("quiesced:", "no");
    else if (mounted > frozen)
        line("quiesced:", "in part: %llu of %llu filesystems, for %.1f ms",
             frozen, mounted, s->frozen_ms);
    else
        line("quiesced:", "yes, %llu filesystem%s for %.1f ms", frozen,
             frozen == 1 ? "" : "s", s->frozen_ms);
}

static void info_words(const struct qstill_snapshot_list *list,
                       const struct qstill_snapshot *s)
{
    char size[TEXT_SIZE_MAX], when[TEXT_TIME_MAX];

    line("name:", "%s%s", s->name, s->current ? " (current)" : "");
    line("id:", "%s", s->id);
    line("created:", "%s", text_time(when, s->created_at));
    if (s->description && s->description[0])
        line("description:", "%s", s->description);
    for (size_t i = 0; i < s->label_count; i++)
        line("label:", "%s", s->labels[i]);
    if (s->parent_id)
        line("parent:", "%s (%s)", name_of(list, s->parent_id), s->parent_id);
    for (size_t i = 0; i < s->child_count; i++)
        line("child:", "%s (%s)", name_of(list, s->children[i]),
             s->children[i]);
    memory_lines(s);
    quiesced_line(s);
    line("size:", "%s", text_size(size, s->size_bytes));
    line("shared:", "%s", text_size(size, s->shared_bytes));
    line("frees:", "at least %s, when it is deleted",
         text_size(size, s->freed_bytes));
    for (size_t i = 0; i < s->disk_count; i++) {
        const struct qstill_disk_info *d = &s->disks[i];

        line("disk:", "%s: %s, %s, %s", d->name, d->path, d->format,
             text_size(size, d->virtual_size));
    }
}

static int info_run(struct cli *cli, const struct args *args,
                    struct qstill_error *err)
{
    CLEANUP(find_list_freep) struct qstill_snapshot_list *list = NULL;
    const struct qstill_snapshot *s;
    struct out o = OUT_INIT(stdout);

    if (find_snapshot(cli, args_operand(args, 0), args_operand(args, 1), &list,
                      &s, err) < 0)
        return err->code;
    if (cli->json)
        show_snapshot_json(&o, NULL, s);
    else
        info_words(list, s);
    return 0;
}

const struct verb verb_info = {
    .name = "info",
    .aliases = {"show"},
    .summary = "Shows one snapshot",
    .operands = {{"VM", false, false}, {"SNAP", false, false}},
    .run = info_run,
};
