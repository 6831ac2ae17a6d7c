/* SPDX-License-Identifier: MIT */
#include "ksm.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "memstate/regions.h"

#define RUN_MERGE 1u /* of `run`: 2 unmerges, and merges nothing */

static uint64_t read_number(const char *dir, const char *name)
{
    CLEANUP(closep) int fd = -1;
    char path[256], text[32];
    ssize_t n;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    n = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
    if (n <= 0)
        return 0;
    text[n] = '\0';
    return strtoull(text, NULL, 10);
}

/* `run` comes last: what begins behind the counters is seen in it, or moves
 * them by the next look. */
void ksm_read_mark(const char *dir, struct ksm_mark *out)
{
    *out = (struct ksm_mark){
        .pages_scanned = read_number(dir, "pages_scanned"),
        .full_scans = read_number(dir, "full_scans"),
        .pages_shared = read_number(dir, "pages_shared"),
        .pages_sharing = read_number(dir, "pages_sharing"),
    };
    out->on = read_number(dir, "run") & RUN_MERGE;
}

bool ksm_ran_since(const char *dir, const struct ksm_mark *then)
{
    struct ksm_mark now;

    ksm_read_mark(dir, &now);
    return then->on || now.on || now.pages_scanned != then->pages_scanned ||
           now.full_scans != then->full_scans ||
           now.pages_shared > then->pages_shared ||
           now.pages_sharing > then->pages_sharing;
}

static bool has_flag(const char *line, const char *end)
{
    const char *at = memmem(line, (size_t)(end - line), " mg", 3);

    return at && (at + 3 == end || at[3] == ' ');
}

bool ksm_is_mergeable(const struct buf *smaps, uint64_t start, uint64_t size)
{
    static const char flags[] = "VmFlags:";
    struct region r = {0};
    size_t next;

    /* The lines between a region's own one and its flags begin with capital
     * letters, its own with a digit of base 16. */
    for (size_t pos = 0; pos < smaps->len; pos = next) {
        const char *line = (const char *)smaps->data + pos;
        const char *end = memchr(line, '\n', smaps->len - pos);
        size_t at = pos;

        if (!end)
            break;
        next = pos + (size_t)(end - line) + 1;
        if (*line < 'A' || *line > 'Z') {
            if (!regions_next(smaps, &at, &r))
                return true; /* not what we know: nothing is ruled out */
            continue;
        }
        if (r.start < start + size && r.end > start &&
            (size_t)(end - line) > sizeof(flags) &&
            memcmp(line, flags, sizeof(flags) - 1) == 0 && has_flag(line, end))
            return true;
    }
    return false;
}

bool ksm_may_merge(pid_t pid)
{
    CLEANUP(buf_fini) struct buf smaps = BUF_INIT;
    struct qstill_error ignored = {0};

    return pid <= 0 || regions_read_smaps(pid, &smaps, &ignored) < 0 ||
           ksm_is_mergeable(&smaps, 0, UINT64_MAX);
}

int ksm_refuse(const char *what, struct qstill_error *err)
{
    err_set(err, QSTILL_E_PRECONDITION,
            "KSM is at work on this host and may merge pages of %.100s, which "
            "takes their write protection away unseen (-machine mem-merge=off, "
            "or echo 0 >" KSM_DIR "/run)",
            what);
    return err_hint(err, "start QEMU with -machine mem-merge=off, or switch "
                         "KSM off for the time of the snapshot: echo 0 "
                         ">" KSM_DIR "/run");
}
