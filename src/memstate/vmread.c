/* SPDX-License-Identifier: MIT */
#include "vmread.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/bytes.h"
#include "base/file.h"
#include "memstate/procmem_impl.h"
#include "memstate/regions.h"

/* Bits of an entry of /proc/PID/pagemap. Without both there is no page: in
 * anonymous memory it was never touched, or was given back. */
#define PM_PRESENT ((uint64_t)1 << 63)
#define PM_SWAP    ((uint64_t)1 << 62)

/* The file mapped there, when we may open it and it is the same one. */
static int open_file(pid_t pid, const struct region *r)
{
    CLEANUP(closep) int fd = -1;
    char path[80];
    struct stat st;

    snprintf(path, sizeof(path), "/proc/%d/map_files/%llx-%llx", (int)pid,
             (unsigned long long)r->start, (unsigned long long)r->end);
    fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) ||
        st.st_ino != r->inode)
        return -1;
    return take_fd(&fd);
}

static int open_pagemap(pid_t pid)
{
    char path[40];

    snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)pid);
    return open(path, O_RDONLY | O_CLOEXEC);
}

void vmread_open(struct vmread *out, struct procmem *mem,
                 const struct buf *maps, uint64_t hva, uint64_t size)
{
    struct region r;

    *out = (struct vmread){.mem = mem, .hva = hva, .fd = -1};
    /* A block in several mappings is rare: read it as it is. */
    if (!regions_find(maps, hva, &r) || r.end - hva < size)
        return;
    if (r.shared && r.inode != 0) {
        out->fd = open_file(mem->pid, &r);
        out->fd_off = r.offset + (hva - r.start);
        out->kind = out->fd >= 0 ? VMREAD_FILE : VMREAD_PLAIN;
    } else if (!r.shared && r.inode == 0) {
        out->fd = open_pagemap(mem->pid);
        out->kind = out->fd >= 0 ? VMREAD_ANONYMOUS : VMREAD_PLAIN;
    }
}

void vmread_close(struct vmread *v)
{
    closep(&v->fd);
    v->fd = -1;
}

static int read_file(const struct vmread *v, uint64_t off, void *data,
                     size_t len, bool *zero, struct qstill_error *err)
{
    off_t start = (off_t)(v->fd_off + off);
    off_t next = lseek(v->fd, start, SEEK_DATA);

    *zero = next < 0 ? errno == ENXIO : next >= start + (off_t)len;
    if (*zero)
        return procmem_alive(v->mem, err);
    if (file_read_full(v->fd, data, len, (uint64_t)start, err) < 0)
        return err_wrap(err, "the file behind the memory");
    return procmem_alive(v->mem, err);
}

/* Which pages are there; all of them where pagemap does not answer. */
static void touched(const struct vmread *v, uint64_t off, size_t pages,
                    struct ramset_map *out)
{
    uint8_t entries[RAMSET_CHUNK_PAGES * 8];
    uint64_t at = (v->hva + off) / RAMSET_PAGE * 8;
    ssize_t n = pread(v->fd, entries, pages * 8, (off_t)at);

    memset(out, n == (ssize_t)(pages * 8) ? 0 : 0xff, sizeof(*out));
    if (n != (ssize_t)(pages * 8))
        return;
    for (size_t i = 0; i < pages; i++)
        if (get_le64(entries + i * 8) & (PM_PRESENT | PM_SWAP))
            ramset_map_set(out, i);
}

static int read_touched(const struct vmread *v, uint64_t off, uint8_t *data,
                        size_t len, bool *zero, struct qstill_error *err)
{
    size_t pages = len / RAMSET_PAGE, at = 0, first, n, behind = 0;
    struct ramset_map map;

    touched(v, off, pages, &map);
    while ((n = ramset_map_run(&map, pages, &at, &first)) > 0) {
        memset(data + behind * RAMSET_PAGE, 0, (first - behind) * RAMSET_PAGE);
        behind = first + n;
        if (procmem_read(v->mem, v->hva + off + first * RAMSET_PAGE,
                         data + first * RAMSET_PAGE, n * RAMSET_PAGE, err) < 0)
            return err->code;
    }
    *zero = behind == 0;
    if (*zero)
        return procmem_alive(v->mem, err);
    memset(data + behind * RAMSET_PAGE, 0, (pages - behind) * RAMSET_PAGE);
    return 0;
}

int vmread_chunk(const struct vmread *v, uint64_t off, void *data, size_t len,
                 bool *zero, struct qstill_error *err)
{
    *zero = false;
    switch (v->kind) {
    case VMREAD_FILE:
        return read_file(v, off, data, len, zero, err);
    case VMREAD_ANONYMOUS:
        return read_touched(v, off, data, len, zero, err);
    default:
        return procmem_read(v->mem, v->hva + off, data, len, err);
    }
}
