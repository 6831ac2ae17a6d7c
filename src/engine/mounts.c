/* SPDX-License-Identifier: MIT */
#include "mounts.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/buf.h"
#include "base/cleanup.h"

/* A host has hundreds of lines; some containers' hosts have thousands. */
enum { TEXT_MAX = 8 << 20, MOUNTS_MAX = 1 << 16 };

/* "36 35 98:0 /a /mnt rw,noatime master:1 - ext3 ..."; a name has no blanks
 * in it. */
struct mount {
    unsigned id, parent;
    size_t rank; /* as it stands in the text: what lies on what */
    const char *device, *root, *point, *options;
    const char *below; /* the point of the parent */
};

struct mounts {
    struct buf text;
    struct mount *v;
    size_t n;
};

static void mounts_fini(struct mounts *m)
{
    buf_fini(&m->text);
    free(m->v);
}

static int slurp(int procfd, struct buf *out)
{
    CLEANUP(closep)
    int fd = openat(procfd, "mountinfo", O_RDONLY | O_CLOEXEC);
    ssize_t n = 1;

    while (fd >= 0 && n > 0 && out->len < TEXT_MAX) {
        if (buf_reserve(out, (64 << 10) + 1) < 0)
            return -1;
        n = read(fd, out->data + out->len, 64 << 10);
        if (n > 0)
            out->len += (size_t)n;
    }
    if (fd < 0 || n != 0 || out->len == 0)
        return -1;
    out->data[out->len] = '\0';
    return 0;
}

static int take_line(char *line, struct mount *out)
{
    char *save, *id = strtok_r(line, " ", &save);
    char *parent = strtok_r(NULL, " ", &save);

    out->device = strtok_r(NULL, " ", &save);
    out->root = strtok_r(NULL, " ", &save);
    out->point = strtok_r(NULL, " ", &save);
    out->options = strtok_r(NULL, " ", &save);
    if (!out->options)
        return -1;
    out->id = (unsigned)strtoul(id, NULL, 10);
    out->parent = (unsigned)strtoul(parent, NULL, 10);
    return 0;
}

static int by_id(const void *a, const void *b)
{
    const struct mount *x = a, *y = b;

    return (x->id > y->id) - (x->id < y->id);
}

static int by_point(const void *a, const void *b)
{
    const struct mount *x = a, *y = b;
    int r = strcmp(x->point, y->point);

    return r ? r : (x->rank > y->rank) - (x->rank < y->rank);
}

static const char *point_of(const struct mounts *m, unsigned id)
{
    struct mount key = {.id = id};
    const struct mount *found = bsearch(&key, m->v, m->n, sizeof(*m->v), by_id);

    return found ? found->point : "";
}

static int mounts_read(int procfd, struct mounts *out)
{
    size_t lines = 0;
    char *save, *line;

    if (slurp(procfd, &out->text) < 0)
        return -1;
    for (size_t i = 0; i < out->text.len; i++)
        lines += out->text.data[i] == '\n';
    if (lines > MOUNTS_MAX || !(out->v = calloc(lines + 1, sizeof(*out->v))))
        return -1;
    for (line = strtok_r((char *)out->text.data, "\n", &save);
         line && out->n < lines; line = strtok_r(NULL, "\n", &save)) {
        struct mount *m = &out->v[out->n];

        m->rank = out->n++;
        if (take_line(line, m) < 0)
            return -1;
    }
    qsort(out->v, out->n, sizeof(*out->v), by_id);
    for (size_t i = 0; i < out->n; i++)
        out->v[i].below = point_of(out, out->v[i].parent);
    qsort(out->v, out->n, sizeof(*out->v), by_point);
    return 0;
}

static bool is_same(const struct mount *a, const struct mount *b)
{
    return strcmp(a->device, b->device) == 0 && strcmp(a->root, b->root) == 0 &&
           strcmp(a->point, b->point) == 0 &&
           strcmp(a->options, b->options) == 0 &&
           strcmp(a->below, b->below) == 0;
}

static int read_self(struct mounts *out)
{
    CLEANUP(closep) int self = open("/proc/self", O_PATH | O_CLOEXEC);

    return self < 0 ? -1 : mounts_read(self, out);
}

bool mounts_are_ours(int procfd)
{
    CLEANUP(mounts_fini) struct mounts theirs = {0}, ours = {0};
    bool same;

    if (mounts_read(procfd, &theirs) < 0 || read_self(&ours) < 0)
        return false;
    same = theirs.n == ours.n;
    for (size_t i = 0; same && i < ours.n; i++)
        same = is_same(&theirs.v[i], &ours.v[i]);
    return same;
}

/* A second more: a start is known in ticks, and a clock is set now and then. */
static bool is_as_old(const char *point, uint64_t inode, double before)
{
    struct stat st;

    return stat(point, &st) == 0 && st.st_ino == inode &&
           (before == 0 || (double)st.st_ctim.tv_sec <= before + 1);
}

bool mounts_keep_space(const char *kind, uint64_t inode, double before)
{
    CLEANUP(mounts_fini) struct mounts ours = {0};
    char root[64];

    if (read_self(&ours) < 0)
        return false;
    snprintf(root, sizeof(root), "%s:[%" PRIu64 "]", kind, inode);
    for (size_t i = 0; i < ours.n; i++)
        if (strcmp(ours.v[i].root, root) == 0 &&
            is_as_old(ours.v[i].point, inode, before))
            return true;
    return false;
}
