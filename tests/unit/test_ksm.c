/* SPDX-License-Identifier: MIT */
/* Write protection that the kernel takes away by itself, as KSM does when it
 * merges a page: refused beforehand, and found afterwards. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <linux/userfaultfd.h>

#include "../lib/cow_fixture.h"
#include "../lib/mem_set.h"
#include "../lib/mem_tmpdir.h"
#include "memstate/ksm.h"

#define SIZE (16 * MIB)

struct ksm_case {
    struct cow_fixture *f;
    uint8_t *ram;
    int uffd; /* the capture's, ours too */
};

static void write_text(const char *dir, const char *name, const char *text)
{
    char path[256];
    FILE *f;

    snprintf(path, sizeof(path), "%s/%s", dir, name);
    f = fopen(path, "we");
    assert_non_null(f);
    fprintf(f, "%s\n", text);
    assert_int_equal(fclose(f), 0);
}

static int setup(void **state)
{
    struct ksm_case *k = calloc(1, sizeof(*k));
    void *f;

    cow_setup(&f);
    k->f = f;
    k->uffd = -1;
    k->ram = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(k->ram != MAP_FAILED);
    madvise(k->ram, SIZE, MADV_NOHUGEPAGE);
    memset(k->ram, 7, SIZE);
    k->f->cow.ksm_dir = k->f->path; /* no KSM at work */
    *state = k;
    return 0;
}

static int teardown(void **state)
{
    struct ksm_case *k = *state;
    void *f = k->f;

    if (k->uffd >= 0)
        close(k->uffd);
    munmap(k->ram, SIZE);
    cow_teardown(&f);
    free(k);
    return 0;
}

/* Of our own memory, so slow that it is not over when we look. */
static struct capture *begin(struct ksm_case *k)
{
    struct capture_source s = {"pc.ram", (uintptr_t)k->ram, SIZE, 4096};
    struct capture *c = NULL;

    if (cow_hindrance()) {
        print_message("skipped: %s\n", cow_hindrance());
        skip();
    }
    k->uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
    assert_true(k->uffd >= 0);
    k->f->cow.uffd = dup(k->uffd);
    if (k->f->options.bwlimit == 0)
        k->f->options.bwlimit = 16 * MIB;
    if (capture_cow_open(&c, getpid(), &s, 1, &k->f->cow, &k->f->options,
                         &k->f->err) < 0)
        fail_msg("%s", k->f->err.message);
    mem_set_wait(c, MEM_SET_READY);
    return c;
}

/* What KSM does to a page that it merges: nobody hears of the next write. */
static void lose_protection(struct ksm_case *k, size_t at, size_t len)
{
    struct uffdio_writeprotect w = {.range = {(uintptr_t)k->ram + at, len},
                                    .mode = UFFDIO_WRITEPROTECT_MODE_DONTWAKE};

    assert_int_equal(ioctl(k->uffd, UFFDIO_WRITEPROTECT, &w), 0);
}

static void expect_failure(struct ksm_case *k, struct capture *c)
{
    struct capture_result r;

    mem_set_wait(c, MEM_SET_COMPLETE);
    assert_int_equal(capture_finish(c, &r, &k->f->err), QSTILL_E_FAILED);
    assert_non_null(strstr(k->f->err.message, "lost its write protection"));
    assert_non_null(strstr(k->f->err.hint, "mem-merge=off"));
    capture_close(c);
    assert_int_equal(mem_tmpdir_count(k->f->dirfd), 0);
    memset(k->ram, 9, SIZE); /* nobody is held up */
}

static void a_page_that_lost_its_protection_fails_the_capture(void **state)
{
    struct ksm_case *k = *state;
    struct capture *c = begin(k);

    cow_instant(k->f, c);
    lose_protection(k, 15 * MIB, RAMSET_PAGE);
    k->ram[15 * MIB] = 8;
    expect_failure(k, c);
}

static void so_does_one_that_lost_it_before_the_instant(void **state)
{
    struct ksm_case *k = *state;
    struct capture *c = begin(k);

    lose_protection(k, 15 * MIB, RAMSET_PAGE);
    cow_instant(k->f, c);
    k->ram[15 * MIB] = 8;
    expect_failure(k, c);
}

/* What is saved along with a page that is written to must be looked at, too. */
static void so_does_one_that_is_saved_ahead(void **state)
{
    struct ksm_case *k = *state;
    struct capture *c = begin(k);
    uint8_t *at = k->ram + 15 * MIB;

    cow_instant(k->f, c);
    lose_protection(k, 15 * MIB + 2 * RAMSET_PAGE, RAMSET_PAGE);
    at[2 * RAMSET_PAGE] = 8;
    at[0] = 8;
    at[RAMSET_PAGE] = 8; /* and the next ones with it */
    expect_failure(k, c);
}

static void pages_that_were_saved_are_left_alone(void **state)
{
    struct ksm_case *k = *state;
    uint8_t *want = malloc(SIZE);
    struct capture *c = begin(k);
    struct capture_result r;

    cow_instant(k->f, c);
    for (size_t i = 0; i < 500; i++)
        k->ram[14 * MIB - 44 * RAMSET_PAGE + i * RAMSET_PAGE] = 8;
    mem_set_wait(c, MEM_SET_COMPLETE);
    if (capture_finish(c, &r, &k->f->err) < 0)
        fail_msg("%s", k->f->err.message);
    memset(want, 7, SIZE);
    mem_set_expect(k->f->dirfd, "pc.ram", want, SIZE);
    capture_close(c);
    free(want);
}

/* As before Linux 6.4, where only what KSM counts can tell. */
static void an_old_kernel_is_asked_what_ksm_did(void **state)
{
    static const struct {
        const char *name, *before, *after;
    } looks[] = {
        {"full_scans", "3", "4"},
        {"pages_scanned", "100", "200"},
        {"run", "0", "1"},
    };
    struct ksm_case *k = *state;
    struct capture *c;
    char dir[128];
    int fd = mem_tmpdir_make(dir);

    k->f->cow.no_unpopulated = true;
    k->f->cow.ksm_dir = dir;
    madvise(k->ram, SIZE, MADV_MERGEABLE);
    for (size_t i = 0; i < sizeof(looks) / sizeof(looks[0]); i++) {
        write_text(dir, looks[i].name, looks[i].before);
        c = begin(k);
        cow_instant(k->f, c);
        write_text(dir, looks[i].name, looks[i].after);
        expect_failure(k, c);
        write_text(dir, looks[i].name, looks[i].before);
        close(k->uffd);
        k->uffd = -1;
    }
    mem_tmpdir_remove(dir, fd);
}

static void mergeable_memory_is_refused_while_ksm_is_at_work(void **state)
{
    struct ksm_case *k = *state;
    struct capture_source s = {"pc.ram", (uintptr_t)k->ram, SIZE, 4096};
    struct capture *c = NULL;
    char dir[128];
    int fd = mem_tmpdir_make(dir);

    if (cow_hindrance() || madvise(k->ram, SIZE, MADV_MERGEABLE) < 0) {
        print_message("skipped: no cow or no KSM in this kernel\n");
        skip();
    }
    k->f->cow.ksm_dir = dir;
    write_text(dir, "run", "1");
    assert_int_equal(capture_cow_open(&c, getpid(), &s, 1, &k->f->cow,
                                      &k->f->options, &k->f->err),
                     QSTILL_E_PRECONDITION);
    assert_non_null(strstr(k->f->err.message, "may merge pages of RAM block "
                                              "'pc.ram'"));
    assert_int_equal(madvise(k->ram, SIZE, MADV_UNMERGEABLE), 0);
    if (capture_cow_open(&c, getpid(), &s, 1, &k->f->cow, &k->f->options,
                         &k->f->err) < 0)
        fail_msg("%s", k->f->err.message);
    capture_close(c);
    mem_tmpdir_remove(dir, fd);
}

static void flags_are_read_from_smaps(void **state)
{
    static const char text[] =
        "7f0000000000-7f0000400000 rw-p 00000000 00:00 0 \n"
        "Size:               4096 kB\n"
        "VmFlags: rd wr mr mw me ac mg \n"
        "7f0000400000-7f0000800000 rw-p 00000000 00:00 0                   mg\n"
        "Size:               4096 kB\n"
        "VmFlags: rd wr mr mw me ac\n"
        "7f0000800000-7f0000900000 rw-s 00000000 00:01 7  /memfd:a (deleted)\n"
        "VmFlags: rd wr sh mr mgx\n";
    struct buf smaps = BUF_INIT;

    (void)state;
    assert_int_equal(buf_append(&smaps, text, strlen(text)), 0);
    assert_true(ksm_is_mergeable(&smaps, 0, UINT64_MAX));
    assert_true(ksm_is_mergeable(&smaps, 0x7f00003ff000, 0x2000));
    assert_false(ksm_is_mergeable(&smaps, 0x7f0000400000, 0x400000));
    assert_false(ksm_is_mergeable(&smaps, 0x7f0000800000, 0x100000));
    smaps.len = 0;
    assert_int_equal(buf_append(&smaps, "7f-nonsense\n", 12), 0);
    assert_true(ksm_is_mergeable(&smaps, 0, UINT64_MAX));
    buf_fini(&smaps);
}

/* ------------------------------------------------------------ the real one */

static const char *const knobs[] = {"sleep_millisecs", "pages_to_scan", "run"};
static char were[3][32];

static void keep_knobs(void)
{
    for (int i = 0; i < 3; i++) {
        char path[64];
        FILE *f;

        snprintf(path, sizeof(path), KSM_DIR "/%s", knobs[i]);
        f = fopen(path, "re");
        assert_non_null(f);
        assert_int_equal(fscanf(f, "%31s", were[i]), 1);
        fclose(f);
    }
}

static int real_teardown(void **state)
{
    for (int i = 0; i < 3 && were[i][0]; i++)
        write_text(KSM_DIR, knobs[i], were[i]);
    return teardown(state);
}

/* KSM is the host's: VMs beside it could not be captured. */
static void real_merging_fails_the_capture(void **state)
{
    struct ksm_case *k = *state;
    struct capture *c;

    if (!getenv("QSTILL_TEST_KSM") || geteuid() != 0) {
        print_message("skipped: needs root, and QSTILL_TEST_KSM=1: it switches "
                      "the host's KSM on\n");
        skip();
    }
    assert_int_equal(madvise(k->ram, SIZE, MADV_MERGEABLE), 0);
    keep_knobs();
    k->f->cow.ksm_dir = NULL;
    k->f->options.bwlimit = 4 * MIB;
    c = begin(k);
    cow_instant(k->f, c);
    write_text(KSM_DIR, "sleep_millisecs", "1");
    write_text(KSM_DIR, "pages_to_scan", "20000");
    write_text(KSM_DIR, "run", "1");
    usleep(700000);
    for (size_t i = SIZE / 2; i < SIZE; i += RAMSET_PAGE)
        k->ram[i] = 8;
    expect_failure(k, c);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
        T(a_page_that_lost_its_protection_fails_the_capture),
        T(so_does_one_that_lost_it_before_the_instant),
        T(so_does_one_that_is_saved_ahead),
        T(pages_that_were_saved_are_left_alone),
        T(an_old_kernel_is_asked_what_ksm_did),
        T(mergeable_memory_is_refused_while_ksm_is_at_work),
        T(flags_are_read_from_smaps),
        cmocka_unit_test_setup_teardown(real_merging_fails_the_capture, setup,
                                        real_teardown),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
