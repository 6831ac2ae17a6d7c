/* SPDX-License-Identifier: MIT */
#include "regions.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/vfs.h>

#define PAGE       4096u
#define PAGE_MAX   (2u << 20)
#define READ_PIECE 65536u

static int read_text(pid_t pid, const char *name, struct buf *b,
                     struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;
    char path[32];
    size_t first = b->len;
    ssize_t n;

    snprintf(path, sizeof(path), "/proc/%d/%s", pid, name);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT)
        return err_set(err, QSTILL_E_UNREACHABLE, "there is no process %d",
                       pid);
    if (fd < 0)
        return err_errno(err, errno, "cannot open %s", path);
    for (;;) {
        if (buf_reserve(b, READ_PIECE) < 0)
            return err_nomem(err);
        n = read(fd, b->data + b->len, READ_PIECE);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_errno(err, errno, "cannot read %s", path);
        if (n == 0)
            break;
        b->len += (size_t)n;
        if (b->len - first > REGIONS_TEXT_MAX)
            return err_set(err, QSTILL_E_FAILED,
                           "process %d has too many mappings", pid);
    }
    if (b->len == first)
        return err_set(err, QSTILL_E_UNREACHABLE, "process %d has ended", pid);
    return 0;
}

int regions_read(pid_t pid, struct buf *b, struct qstill_error *err)
{
    return read_text(pid, "maps", b, err);
}

int regions_read_smaps(pid_t pid, struct buf *b, struct qstill_error *err)
{
    return read_text(pid, "smaps", b, err);
}

struct line {
    const char *at;
    const char *end;
};

/* A number in base 10 or 16, then the character `stop`. */
static bool take_number(struct line *l, unsigned base, char stop, uint64_t *out)
{
    uint64_t v = 0;
    unsigned digits = 0;

    for (; l->at < l->end && *l->at != stop; l->at++, digits++) {
        char c = *l->at;
        unsigned d;

        if (c >= '0' && c <= '9')
            d = (unsigned)(c - '0');
        else if (base == 16 && c >= 'a' && c <= 'f')
            d = (unsigned)(c - 'a') + 10;
        else
            return false;
        if (v > (UINT64_MAX - d) / base)
            return false;
        v = v * base + d;
    }
    if (digits == 0 || l->at == l->end)
        return false;
    l->at++;
    *out = v;
    return true;
}

static bool take_perms(struct line *l, struct region *r)
{
    const char *p = l->at;

    if (l->end - p < 5 || p[4] != ' ')
        return false;
    r->readable = p[0] == 'r';
    r->writable = p[1] == 'w';
    r->executable = p[2] == 'x';
    r->shared = p[3] == 's';
    l->at += 5;
    return true;
}

/* "start-end rwxp offset major:minor inode     path" */
static bool parse_line(struct line l, struct region *r)
{
    uint64_t major, minor;

    if (!take_number(&l, 16, '-', &r->start) ||
        !take_number(&l, 16, ' ', &r->end) || !take_perms(&l, r) ||
        !take_number(&l, 16, ' ', &r->offset) ||
        !take_number(&l, 16, ':', &major) ||
        !take_number(&l, 16, ' ', &minor) || r->start >= r->end)
        return false;
    r->major = (unsigned)major;
    r->minor = (unsigned)minor;
    /* Nothing behind the inode of an anonymous one but, perhaps, a space. */
    if (!memchr(l.at, ' ', (size_t)(l.end - l.at))) {
        r->inode = 0;
        r->path = l.end;
        r->path_len = 0;
        return l.end - l.at == 1 && *l.at == '0';
    }
    if (!take_number(&l, 10, ' ', &r->inode))
        return false;
    while (l.at < l.end && *l.at == ' ')
        l.at++;
    r->path = l.at;
    r->path_len = (size_t)(l.end - l.at);
    return true;
}

bool regions_next(const struct buf *text, size_t *pos, struct region *out)
{
    const char *start, *end;

    if (*pos >= text->len)
        return false;
    start = (const char *)text->data + *pos;
    end = memchr(start, '\n', text->len - *pos);
    if (!end || !parse_line((struct line){start, end}, out)) {
        *pos = SIZE_MAX;
        return false;
    }
    *pos += (size_t)(end - start) + 1;
    return true;
}

bool regions_find(const struct buf *text, uint64_t address, struct region *out)
{
    size_t pos = 0;
    struct region r;

    while (regions_next(text, &pos, &r)) {
        if (address < r.start || address >= r.end)
            continue;
        *out = r;
        return true;
    }
    return false;
}

/* ---------------------------------------------------------------- examine */

/* The file that is mapped there, whatever became of its name. */
static int open_mapped(pid_t pid, const struct region *r)
{
    char path[80];

    snprintf(path, sizeof(path), "/proc/%d/map_files/%llx-%llx", pid,
             (unsigned long long)r->start, (unsigned long long)r->end);
    return open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY);
}

static int refuse_file(const struct region *r, struct qstill_error *err)
{
    err_set(err, QSTILL_E_PRECONDITION,
            "it is a %s mapping of the file %.*s, whose pages cannot be "
            "write-protected",
            r->shared ? "shared" : "private",
            (int)(r->path_len < 200 ? r->path_len : 200), r->path);
    return err_hint(err,
                    "a VM that was restored with --restore mapped, or with "
                    "RAM in a file on a disk: take --mode paused");
}

/* One region: of the kind that `out` says, or the first one. */
static int examine_one(pid_t pid, const struct region *r, uint32_t page_hint,
                       struct region_ram *out, struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;
    struct statfs fs;

    *out = (struct region_ram){.page = page_hint ? page_hint : PAGE, .fd = -1};
    if (r->inode == 0)
        return 0;
    out->backed = true;
    out->shared = r->shared;
    fd = open_mapped(pid, r);
    /* No rights for that: the kernel says at the registration whether it can
     * be done. */
    if (fd < 0 || fstatfs(fd, &fs) < 0)
        return 0;
    if (fs.f_type == HUGETLBFS_MAGIC)
        out->page = (uint32_t)fs.f_bsize;
    else if (fs.f_type != TMPFS_MAGIC)
        return refuse_file(r, err);
    if (r->shared) {
        out->fd = take_fd(&fd);
        out->fd_off = r->offset;
    }
    return 0;
}

/* `more` lies behind `out`: together they are read through one descriptor
 * only when they go on in one file. */
static int join_regions(struct region_ram *out, struct region_ram *more,
                        uint64_t before, struct qstill_error *err)
{
    int fd = more->fd;
    bool same = out->fd >= 0 && fd >= 0 && out->fd_off + before == more->fd_off;

    closep(&fd);
    if (out->backed != more->backed || out->shared != more->shared ||
        out->page != more->page)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "it lies in mappings of different kinds");
    if (!same) {
        closep(&out->fd);
        out->fd = -1;
    }
    return 0;
}

static int examine_all(pid_t pid, const struct buf *text, uint64_t hva,
                       uint64_t size, uint32_t page_hint,
                       struct region_ram *out, struct qstill_error *err)
{
    struct region first = {0}, r;
    uint64_t at = hva;

    while (at - hva < size) {
        struct region_ram more;

        if (!regions_find(text, at, &r) || !r.readable)
            return err_set(err, QSTILL_E_PRECONDITION,
                           "nothing is mapped at 0x%llx",
                           (unsigned long long)at);
        if (examine_one(pid, &r, page_hint, &more, err) < 0)
            return err->code;
        if (more.fd >= 0)
            more.fd_off += at - r.start;
        if (at == hva) {
            first = r;
            *out = more;
        } else if (first.inode != r.inode || first.major != r.major ||
                   first.minor != r.minor) {
            closep(&more.fd);
            more.fd = -1;
            if (join_regions(out, &more, 0, err) < 0)
                return err->code;
        } else if (join_regions(out, &more, at - hva, err) < 0) {
            return err->code;
        }
        at = r.end;
    }
    return 0;
}

int regions_examine(pid_t pid, const struct buf *text, uint64_t hva,
                    uint64_t size, uint32_t page_hint, struct region_ram *out,
                    struct qstill_error *err)
{
    struct region_ram found = {.page = PAGE, .fd = -1};
    int r = examine_all(pid, text, hva, size, page_hint, &found, err);

    if (r == 0 && found.page != PAGE && found.page != PAGE_MAX)
        r = err_set(err, QSTILL_E_PRECONDITION,
                    "its pages of %u KiB are too large to be saved one by one",
                    found.page / 1024);
    if (r == 0 && (hva % found.page != 0 || size % found.page != 0))
        r = err_set(err, QSTILL_E_PRECONDITION,
                    "it does not lie at a border of its pages");
    if (r < 0) {
        closep(&found.fd);
        return r;
    }
    *out = found;
    return 0;
}
