/* SPDX-License-Identifier: MIT */
#include "regions.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

#define READ_PIECE 65536u

int regions_read(pid_t pid, struct buf *b, struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;
    char path[32];
    size_t first = b->len;
    ssize_t n;

    snprintf(path, sizeof(path), "/proc/%d/maps", pid);
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
