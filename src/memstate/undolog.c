/* SPDX-License-Identifier: MIT */
#include "undolog.h"

#include <errno.h>
#include <string.h>
#include <sys/uio.h>

#include "base/bytes.h"
#include "base/file.h"

#define MAGIC 0x7165676150646e55u /* "UndPageq" */
/* Slots read at once. */
#define BATCH 256u

struct head {
    uint8_t raw[UNDOLOG_HEAD];
};

uint64_t undolog_id_sum(const char *id)
{
    return sum_bytes(id, strlen(id), 0);
}

static void put_head(struct head *h, uint64_t id, uint64_t page,
                     const uint8_t *data)
{
    put_le64(h->raw, MAGIC);
    put_le64(h->raw + 8, id);
    put_le64(h->raw + 16, page);
    put_le64(h->raw + 24, ramset_page_sum(data, page));
}

static int write_slots(int fd, struct iovec *iov, int count, uint64_t off,
                       struct qstill_error *err)
{
    while (count > 0) {
        ssize_t n = pwritev(fd, iov, count, (off_t)off);

        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return err_errno(err, n < 0 ? errno : ENOSPC,
                             "cannot keep the memory that is overwritten");
        off += (uint64_t)n;
        for (; count > 0 && (size_t)n >= iov->iov_len; iov++, count--)
            n -= (ssize_t)iov->iov_len;
        if (count > 0) {
            iov->iov_base = (char *)iov->iov_base + n;
            iov->iov_len -= (size_t)n;
        }
    }
    return 0;
}

int undolog_keep(struct undolog *log, const char *id, uint64_t first_page,
                 const uint8_t *data, size_t pages,
                 const struct ramset_map *which, struct qstill_error *err)
{
    struct head heads[RAMSET_CHUNK_PAGES];
    struct iovec iov[2 * RAMSET_CHUNK_PAGES];
    uint64_t sum = undolog_id_sum(id), slot;
    size_t n = 0;

    for (size_t i = 0; i < pages; i++) {
        const uint8_t *page = data + i * RAMSET_PAGE;

        if (!ramset_map_has(which, i))
            continue;
        put_head(&heads[n], sum, first_page + i, page);
        iov[2 * n] = (struct iovec){heads[n].raw, UNDOLOG_HEAD};
        iov[2 * n + 1] = (struct iovec){(void *)(uintptr_t)page, RAMSET_PAGE};
        n++;
    }
    if (n == 0)
        return 0;
    slot = __atomic_fetch_add(&log->next, n, __ATOMIC_RELAXED);
    return write_slots(log->fd, iov, (int)(2 * n), slot * UNDOLOG_SLOT, err);
}

/* -------------------------------------------------------------------- read */

int undolog_each(int fd, undolog_put_fn *put, void *user,
                 struct qstill_error *err)
{
    CLEANUP(freep) uint8_t *batch = malloc((size_t)BATCH * UNDOLOG_SLOT);
    uint64_t off = 0;
    size_t got;

    if (!batch)
        return err_nomem(err);
    do {
        if (file_read_upto(fd, batch, (size_t)BATCH * UNDOLOG_SLOT, off, &got,
                           err) < 0)
            return err->code;
        for (size_t at = 0; got - at >= UNDOLOG_SLOT; at += UNDOLOG_SLOT) {
            const uint8_t *slot = batch + at, *data = slot + UNDOLOG_HEAD;
            uint64_t page = get_le64(slot + 16);

            if (get_le64(slot) == MAGIC &&
                get_le64(slot + 24) == ramset_page_sum(data, page) &&
                put(user, get_le64(slot + 8), page, data, err) < 0)
                return err->code;
        }
        off += got;
    } while (got == (size_t)BATCH * UNDOLOG_SLOT);
    return 0;
}

/* ------------------------------------------------------------------- apply */

struct apply {
    struct procmem *mem;
    const struct capture_source *blocks;
    size_t count;
    uint64_t pages;
};

static int apply_page(void *user, uint64_t id, uint64_t page,
                      const uint8_t *data, struct qstill_error *err)
{
    struct apply *a = user;
    const struct capture_source *b = NULL;

    for (size_t i = 0; i < a->count && !b; i++)
        if (undolog_id_sum(a->blocks[i].id) == id)
            b = &a->blocks[i];
    if (!b || page >= b->size / RAMSET_PAGE)
        return err_set(err, QSTILL_E_CORRUPT,
                       "a page that was kept belongs to no RAM block of this "
                       "QEMU");
    a->pages++;
    return procmem_write(a->mem, b->hva + page * RAMSET_PAGE, data, RAMSET_PAGE,
                         err);
}

int undolog_apply(int fd, struct procmem *mem,
                  const struct capture_source *blocks, size_t count,
                  uint64_t *pages, struct qstill_error *err)
{
    struct apply a = {mem, blocks, count, 0};
    int rc = undolog_each(fd, apply_page, &a, err);

    *pages = a.pages;
    return rc;
}
