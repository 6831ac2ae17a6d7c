/* SPDX-License-Identifier: MIT */
/* Chunks into the files of a set, on each kind of filesystem that is written
 * to in a way of its own. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <unistd.h>

#include "../lib/mem_tmpdir.h"
#include "memstate/chunk_write.h"

#define CHUNKS 6u

struct fixture {
    char path[128];
    int dirfd;
    struct ramset_writer *set;
    struct chunk_writer *w;
    struct qstill_error err;
};

/* In a mount namespace of our own: it goes with us. */
static bool mount_tmpfs(struct fixture *f, const char *how)
{
    static bool apart;

    apart = apart || (unshare(CLONE_NEWNS) == 0 &&
                      mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) == 0);
    if (!apart || mount("none", f->path, "tmpfs", 0, how) < 0)
        return false;
    close(f->dirfd);
    f->dirfd = open(f->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return f->dirfd >= 0;
}

static void begin(struct fixture *f, const char *how, unsigned buffers)
{
    unsigned index;

    memset(f, 0, sizeof(*f));
    f->dirfd = mem_tmpdir_make(f->path);
    if (how && !mount_tmpfs(f, how)) {
        print_message("skipped: no tmpfs with %s can be mounted\n", how);
        mem_tmpdir_remove(f->path, f->dirfd);
        skip();
    }
    assert_int_equal(
        ramset_create(&f->set, NULL, f->dirfd, RAMSET_DIRECT, &f->err), 0);
    assert_int_equal(ramset_add_block(f->set, "pc.ram",
                                      (uint64_t)CHUNKS * RAMSET_CHUNK, 4096,
                                      &index, &f->err),
                     0);
    assert_int_equal(
        chunk_writer_open(&f->w, f->set, io_real(), buffers, &f->err), 0);
}

static void end(struct fixture *f, bool mounted)
{
    chunk_writer_close(f->w);
    ramset_writer_free(f->set);
    if (mounted) {
        close(f->dirfd);
        umount2(f->path, MNT_DETACH);
        f->dirfd = open(f->path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    }
    mem_tmpdir_remove(f->path, f->dirfd);
}

static uint8_t byte_of(uint64_t number, size_t page)
{
    return (uint8_t)(1 + (number * 7 + page) % 251);
}

/* Pages of the chunk that are written: runs that are too far apart to be one,
 * and the last page. */
static bool is_written(size_t page)
{
    return page / 64 % 2 == 0 || page == RAMSET_CHUNK_PAGES - 1;
}

static void put(struct fixture *f, uint64_t number)
{
    struct chunk *c;

    assert_int_equal(chunk_writer_get(f->w, 0, number, &c, &f->err), 0);
    memset(c->data, 0xee, RAMSET_CHUNK);
    for (size_t i = 0; i < c->pages; i++)
        if (is_written(i)) {
            memset(c->data + i * RAMSET_PAGE, byte_of(number, i), RAMSET_PAGE);
            ramset_map_set(&c->have, i);
        }
    assert_int_equal(chunk_writer_put(f->w, c, &f->err), 0);
}

static void is_there(struct fixture *f, uint64_t number)
{
    int fd = openat(f->dirfd, "pc.ram.ram", O_RDONLY | O_CLOEXEC);
    uint8_t page[RAMSET_PAGE];

    assert_true(fd >= 0);
    for (size_t i = 0; i < RAMSET_CHUNK_PAGES; i++) {
        uint8_t want = is_written(i) ? byte_of(number, i) : 0;

        assert_int_equal(
            pread(fd, page, sizeof(page),
                  (off_t)(number * RAMSET_CHUNK + i * RAMSET_PAGE)),
            sizeof(page));
        assert_int_equal(page[0], want);
        assert_memory_equal(page, page + 1, sizeof(page) - 1);
    }
    close(fd);
}

static void all_chunks(struct fixture *f)
{
    for (uint64_t i = 0; i < CHUNKS; i++)
        put(f, CHUNKS - 1 - i);
    assert_int_equal(chunk_writer_drain(f->w, &f->err), 0);
    for (uint64_t i = 0; i < CHUNKS; i++)
        is_there(f, i);
}

static void chunks_on_a_disk(void **state)
{
    struct fixture f;

    (void)state;
    begin(&f, NULL, 3);
    all_chunks(&f);
    end(&f, false);
}

static void chunks_on_a_tmpfs_of_small_pages(void **state)
{
    struct fixture f;

    (void)state;
    begin(&f, "huge=never,size=16M", 3);
    all_chunks(&f);
    end(&f, true);
}

static void chunks_on_a_tmpfs_of_huge_pages_are_there_at_once(void **state)
{
    struct fixture f;

    (void)state;
    begin(&f, "huge=always,size=16M", 1);
    for (uint64_t i = 0; i < CHUNKS; i++) {
        put(&f, i);
        is_there(&f, i);
    }
    all_chunks(&f);
    end(&f, true);
}

static void a_tmpfs_that_is_full_fails(void **state)
{
    struct fixture f;

    (void)state;
    begin(&f, "huge=always,size=2M", 2);
    for (uint64_t i = 0; i < CHUNKS && f.err.code == 0; i++) {
        struct chunk *c;

        if (chunk_writer_get(f.w, 0, i, &c, &f.err) < 0)
            break;
        for (size_t k = 0; k < c->pages; k++)
            ramset_map_set(&c->have, k);
        chunk_writer_put(f.w, c, &f.err);
    }
    assert_int_equal(chunk_writer_drain(f.w, &f.err), QSTILL_E_NO_SPACE);
    end(&f, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(chunks_on_a_disk),
        cmocka_unit_test(chunks_on_a_tmpfs_of_small_pages),
        cmocka_unit_test(chunks_on_a_tmpfs_of_huge_pages_are_there_at_once),
        cmocka_unit_test(a_tmpfs_that_is_full_fails),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
