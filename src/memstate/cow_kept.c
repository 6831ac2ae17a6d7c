/* SPDX-License-Identifier: MIT */
/*
 * The kernel may take a page's write protection away by itself: KSM does when
 * it merges the page, and the next write to it makes no fault. So where KSM is
 * at work it is refused beforehand. And the proof that what was read is of the
 * instant: behind each read, and before the pages are let go, pagemap is asked
 * whether they were protected up to then. Nobody protects a page after the
 * instant: what has its protection now had it all the time.
 */
#include "cow_impl.h"

#include <stdio.h>
#include <unistd.h>

#include "base/checked.h"
#include "memstate/regions.h"

void cow_seen_fini(struct cow_seen *seen)
{
    buf_fini(&seen->maps);
    buf_fini(&seen->smaps);
}

int cow_see(struct cow_seen *out, pid_t pid, const struct ksm_mark *ksm,
            struct qstill_error *err)
{
    struct qstill_error ignored = {0};

    out->ksm = ksm->on;
    if (regions_read(pid, &out->maps, err) < 0)
        return err->code;
    if (out->ksm && regions_read_smaps(pid, &out->smaps, &ignored) < 0)
        out->smaps.len = 0;
    return 0;
}

int cow_check_merging(const struct cow_seen *seen,
                      const struct capture_source *s, struct qstill_error *err)
{
    char what[64];

    if (!seen->ksm || (seen->smaps.len > 0 &&
                       !ksm_is_mergeable(&seen->smaps, s->hva, s->size)))
        return 0;
    snprintf(what, sizeof(what), "RAM block '%.40s'", s->id);
    return ksm_refuse(what, err);
}

/* Shared memory and huge pages are never merged, and what pagemap says of
 * them depends on the kernel. */
static bool is_to_be_looked_at(const struct cow_block *b)
{
    return !b->shared && b->page == RAMSET_PAGE;
}

/* Before Linux 6.4 pages that were never touched have nothing to show. */
static bool can_look(const struct cow *cow)
{
    return cow->uffd.unpopulated && cow->untouched.fd >= 0;
}

static int lost(struct qstill_error *err)
{
    err_set(err, QSTILL_E_FAILED,
            "a page of RAM lost its write protection before it was saved (KSM "
            "was switched on?)");
    return err_hint(err, "start QEMU with -machine mem-merge=off, or switch "
                         "KSM off for the time of the snapshot: echo 0 "
                         ">" KSM_DIR "/run");
}

int cow_check_kept(struct cow *cow, uint32_t unit, const struct cow_unit *u,
                   uint32_t page, uint32_t pages, struct qstill_error *err)
{
    uint64_t entries[COW_UNIT_PAGES];
    uint64_t hva = u->block->hva + u->offset + (uint64_t)page * RAMSET_PAGE;
    size_t len = pages * sizeof(entries[0]);

    if (!is_to_be_looked_at(u->block) || !can_look(cow))
        return 0;
    if (pread(cow->untouched.fd, entries, len,
              (off_t)(hva / RAMSET_PAGE * sizeof(entries[0]))) != (ssize_t)len)
        return err_set(err, QSTILL_E_FAILED,
                       "the pages of process %d cannot be looked at", cow->pid);
    for (uint32_t i = 0; i < pages; i++)
        if (!(entries[i] & UFFD_ENTRY_PROTECTED) &&
            !cow_map_is_marked(&cow->map, unit, page + i))
            return lost(err);
    return 0;
}

int cow_check_merged(struct cow *cow, struct qstill_error *err)
{
    bool any = false;

    for (size_t i = 0; i < cow->map.block_count; i++)
        any |= is_to_be_looked_at(&cow->map.blocks[i]);
    if (!any || can_look(cow) || !ksm_ran_since(cow->ksm_dir, &cow->ksm) ||
        !ksm_may_merge(cow->pid))
        return 0;
    return lost(err);
}
