/* SPDX-License-Identifier: MIT */
/* Memory that was never written to is told from all other, before and after
 * it is write-protected. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <sys/mman.h>
#include <unistd.h>

#include "../lib/cow_fixture.h"
#include "memstate/uffd.h"
#include "memstate/untouched.h"

#define PAGES 512u
#define SIZE  (PAGES * 4096u)

struct fixture {
    struct uffd uffd;
    struct untouched u;
    volatile uint8_t *ram;
    uint64_t at;
};

static void begin(struct fixture *f, bool protect)
{
    struct uffd_options o = UFFD_OPTIONS_INIT;
    struct qstill_error err;

    if (cow_hindrance()) {
        print_message("skipped: %s\n", cow_hindrance());
        skip();
    }
    assert_int_equal(uffd_open(&f->uffd, getpid(), &o, &err), 0);
    untouched_open(&f->u, getpid());
    f->ram = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(f->ram != MAP_FAILED);
    madvise((void *)(uintptr_t)f->ram, SIZE, MADV_NOHUGEPAGE);
    f->at = (uintptr_t)f->ram;
    if (!protect)
        return;
    assert_int_equal(uffd_register(&f->uffd, f->at, SIZE), 0);
    assert_int_equal(uffd_protect(&f->uffd, f->at, SIZE), 0);
    if (!f->uffd.unpopulated || f->u.marker == 0) {
        print_message("skipped: this kernel, or our rights, do not show it\n");
        skip();
    }
}

static void end(struct fixture *f)
{
    uffd_close(&f->uffd);
    untouched_close(&f->u);
    munmap((void *)(uintptr_t)f->ram, SIZE);
}

static void protected_memory_that_nobody_wrote_to(void **state)
{
    struct fixture f;

    (void)state;
    begin(&f, true);
    assert_true(untouched_all(&f.u, f.at, PAGES));
    assert_true(untouched_all(&f.u, f.at + 40960, 1));
    /* A page that was only read is there, and is read again. */
    assert_int_equal(f.ram[4096], 0);
    assert_false(untouched_all(&f.u, f.at, PAGES));
    assert_true(untouched_all(&f.u, f.at + 2 * 4096, PAGES - 2));
    end(&f);
}

static void one_page_among_many_is_seen(void **state)
{
    static const unsigned where[] = {0, 1, 63, 64, 300, PAGES - 1};
    struct fixture f;

    (void)state;
    for (size_t i = 0; i < sizeof(where) / sizeof(where[0]); i++) {
        begin(&f, false);
        f.ram[where[i] * 4096 + 100] = 1;
        assert_false(untouched_all(&f.u, f.at, PAGES));
        assert_int_equal(uffd_register(&f.uffd, f.at, SIZE), 0);
        assert_int_equal(uffd_protect(&f.uffd, f.at, SIZE), 0);
        assert_false(untouched_all(&f.u, f.at, PAGES));
        assert_false(untouched_all(&f.u, f.at + where[i] * 4096, 1));
        end(&f);
    }
}

static void what_cannot_be_told_is_touched(void **state)
{
    struct untouched none = {.fd = -1, .marker = 0};
    struct fixture f;

    (void)state;
    begin(&f, true);
    assert_false(untouched_all(&none, f.at, PAGES));
    /* Not the marker: as a page that was swapped out would look. */
    f.u.marker ^= 1;
    assert_false(untouched_all(&f.u, f.at, PAGES));
    f.u.marker = 0;
    assert_false(untouched_all(&f.u, f.at, PAGES));
    assert_false(untouched_all(&f.u, f.at, UNTOUCHED_PAGES + 1));
    end(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(protected_memory_that_nobody_wrote_to),
        cmocka_unit_test(one_page_among_many_is_seen),
        cmocka_unit_test(what_cannot_be_told_is_touched),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
