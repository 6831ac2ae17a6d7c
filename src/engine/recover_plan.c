/* SPDX-License-Identifier: MIT */
#include "recover_plan.h"

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "journal.h"
#include "store.h"

static bool is_published(int vmfd, const char *id)
{
    char path[128];

    snprintf(path, sizeof(path), STORE_SNAPSHOTS "/%.64s/" STORE_MANIFEST, id);
    return faccessat(vmfd, path, F_OK, AT_SYMLINK_NOFOLLOW) == 0;
}

static void each_disk(const struct journal *j, bool finish, struct buf *text)
{
    for (size_t i = 0; i < j->disk_count; i++) {
        const struct journal_disk *d = &j->disks[i];

        buf_printf(text, "disk %s: ", d->disk);
        if (finish)
            buf_printf(text, "the head is %s\n", d->new_path);
        else
            buf_printf(text, "back from %s to %s\n", d->new_path, d->old_path);
    }
}

static void plan_create(int vmfd, const struct journal *j, struct buf *text)
{
    bool finish = is_published(vmfd, j->snapshot);

    buf_printf(text, "%s the creation of snapshot %s\n",
               finish ? "finish" : "undo", j->snapshot);
    each_disk(j, finish, text);
    if (!finish)
        buf_printf(text, "remove what was stored of it\n");
}

static void plan_heads(const struct journal *j, struct buf *text)
{
    bool finish = j->phase == JOURNAL_COMMITTED;

    buf_printf(text, "%s the %s\n", finish ? "finish" : "undo",
               j->undone ? "undo of a revert" : "revert");
    each_disk(j, finish, text);
    for (size_t i = 0; !finish && i < j->load_count; i++)
        buf_printf(text,
                   j->inplace ? "bring %s, the file of RAM block %s, back\n"
                              : "%s, the file of RAM block %s, may be a part "
                                "of the snapshot: a revert to it makes it "
                                "whole\n",
                   j->loads[i].file, j->loads[i].block);
}

static void plan_delete(const struct journal *j, struct buf *text)
{
    for (size_t i = 0; i < j->id_count; i++)
        buf_printf(text, "finish the deletion of snapshot %s\n", j->ids[i]);
    buf_printf(text, "merge or remove the disk files that nobody needs\n");
}

void recover_plan(int vmfd, const struct journal *j, struct buf *text)
{
    switch (j->op) {
    case JOURNAL_CREATE:
        plan_create(vmfd, j, text);
        break;
    case JOURNAL_REVERT:
        plan_heads(j, text);
        break;
    case JOURNAL_DELETE:
        plan_delete(j, text);
        break;
    case JOURNAL_UNDO:
        if (j->disk_count > 0)
            plan_heads(j, text);
        else
            buf_printf(text, "finish the undo of a delete\n");
        break;
    }
    if (journal_stopped_it(j))
        buf_printf(text, "have the guest run, if it was stopped for this\n");
    if (j->freezing)
        buf_printf(text, "thaw the guest\n");
}
