/* SPDX-License-Identifier: MIT */
/* What the capture reads from /proc, and seccomp filters run by hand. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <linux/audit.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "memstate/inject_seccomp.h"
#include "memstate/inject_status.h"
#include "memstate/regions.h"

static struct qstill_error err;

static void regions_of_this_process_are_found(void **state)
{
    CLEANUP(buf_fini) struct buf maps = BUF_INIT;
    char *p = mmap(NULL, 8192, PROT_READ | PROT_WRITE,
                   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    struct region r;

    (void)state;
    mprotect(p + 4096, 4096, PROT_NONE);
    assert_int_equal(regions_read(getpid(), &maps, &err), 0);
    assert_true(regions_find(&maps, (uint64_t)(uintptr_t)p + 17, &r));
    assert_true(r.readable && r.writable && !r.executable && !r.shared);
    assert_int_equal(r.end, (uint64_t)(uintptr_t)p + 4096);
    assert_int_equal(r.inode, 0);
    assert_true(regions_find(
        &maps, (uint64_t)(uintptr_t)&regions_of_this_process_are_found, &r));
    assert_true(r.executable && r.inode != 0);
    assert_non_null(memmem(r.path, r.path_len, "test_cow_parse", 14));
    assert_false(regions_find(&maps, 17, &r));
    munmap(p, 8192);
}

static void regions_of_nobody_are_unreachable(void **state)
{
    CLEANUP(buf_fini) struct buf maps = BUF_INIT;

    (void)state;
    assert_int_equal(regions_read(0x3fffffff, &maps, &err),
                     QSTILL_E_UNREACHABLE);
    assert_string_equal(err.message, "there is no process 1073741823");
}

static void a_line_of_maps_is_read_whole(void **state)
{
    static const char text[] =
        "7f10-7f20 rw-s 00001000 00:1d 1234567      /memfd:pc.ram (deleted)\n"
        "7f20-8000 r--p 00000000 00:00 0 \n"
        "8000-9000 ---p 00000000 00:00 0\n"
        "ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0    [vsys]\n";
    struct buf b = BUF_INIT;
    size_t pos = 0;
    struct region r;

    (void)state;
    assert_int_equal(buf_append(&b, text, sizeof(text) - 1), 0);
    assert_true(regions_next(&b, &pos, &r));
    assert_true(r.start == 0x7f10 && r.end == 0x7f20 && r.offset == 0x1000);
    assert_true(r.shared && r.writable && r.major == 0 && r.minor == 0x1d);
    assert_int_equal(r.inode, 1234567);
    assert_int_equal(r.path_len, 23);
    assert_memory_equal(r.path, "/memfd:pc.ram (deleted)", 23);
    assert_true(regions_next(&b, &pos, &r));
    assert_int_equal(r.path_len, 0);
    assert_true(regions_next(&b, &pos, &r));
    assert_false(r.readable);
    assert_true(regions_next(&b, &pos, &r));
    assert_true(r.end == 0xffffffffff601000);
    assert_false(regions_next(&b, &pos, &r));
    assert_int_equal(pos, b.len);
    buf_fini(&b);
}

static void lines_that_are_none_end_the_text(void **state)
{
    static const char *const bad[] = {
        "7f10-7f20 rw-s 00001000 00:1d 12 /x", /* no end of line */
        "7f20-7f10 rw-s 00001000 00:1d 12 /x\n",
        "7f10 7f20 rw-s 00001000 00:1d 12 /x\n",
        "7f10-7f20 rw 00001000 00:1d 12 /x\n",
        "7g10-7f20 rw-s 00001000 00:1d 12 /x\n",
        "10000000000000000-1 rw-s 00001000 00:1d 12 /x\n",
        "7f10-7f20 rw-s 00001000 00:1d x\n",
        "-\n",
        "\n",
    };
    struct region r;

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
        struct buf b = BUF_INIT;
        size_t pos = 0;

        assert_int_equal(buf_append(&b, bad[i], strlen(bad[i])), 0);
        assert_false(regions_next(&b, &pos, &r));
        assert_true(pos == SIZE_MAX);
        buf_fini(&b);
    }
}

static void a_status_is_read(void **state)
{
    struct inject_status st;

    (void)state;
    inject_status_parse(
        "Name:\tState: Z\nState:\tS (sleeping)\nTracerPid:\t42\n"
        "Seccomp:\t2\nSeccomp_filters:\t3\n"
        "x86_Thread_features:\tshstk wrss \n",
        &st);
    assert_int_equal(st.state, 'S');
    assert_int_equal(st.tracer, 42);
    assert_int_equal(st.seccomp, 2);
    assert_true(st.shadow_stack);
    inject_status_parse("State:\tR\nx86_Thread_features:\t\n"
                        "x86_Thread_features_locked:\tshstk\n",
                        &st);
    assert_int_equal(st.state, 'R');
    assert_int_equal(st.seccomp, 0);
    assert_false(st.shadow_stack);
    assert_int_equal(inject_status_read(getpid(), getpid(), &st, &err), 0);
    assert_int_equal(st.state, 'R');
    assert_int_equal(inject_status_read(getpid(), 0x3fffffff, &st, &err),
                     QSTILL_E_UNREACHABLE);
}

static void threads_are_ranked_by_what_they_wait_for(void **state)
{
    (void)state;
    assert_int_equal(inject_rank_parse("running\n"), INJECT_RANK_RUNS);
    assert_int_equal(inject_rank_parse("-1 0x7ffc 0x7f\n"), INJECT_RANK_RUNS);
    assert_int_equal(inject_rank_parse(""), INJECT_RANK_RUNS);
    assert_int_equal(inject_rank_parse("271 0x1 0x2 0x3 0x0 0x8 0x0 0x7 0x7"),
                     INJECT_RANK_WAITS);
    assert_int_equal(inject_rank_parse("202 0x1 0x80 0x2 0x0 0x0 0x0 0x7 0x7"),
                     INJECT_RANK_WAITS);
    assert_int_equal(inject_rank_parse("202 0x1 0x80 0x2 0x9 0x0 0x0 0x7 0x7"),
                     INJECT_RANK_BAD);
    assert_int_equal(inject_rank_parse("230 0x1 0x0 0x2 0x9 0x0 0x0 0x7 0x7"),
                     INJECT_RANK_BAD);
    assert_int_equal(inject_rank_parse("232 0x1 0x0 0x2 0x9 0x0 0x0 0x7 0x7"),
                     INJECT_RANK_OTHER);
    /* Never restarted by the kernel: without a limit; with one; with a mask of
     * signals; with both. */
    assert_int_equal(
        inject_rank_parse("232 0x1 0x0 0x2 0xffffffff 0x0 0x0 0x7 0x7"),
        INJECT_RANK_WAITS);
    assert_int_equal(inject_rank_parse("232 0x1 0x0 0x2 0x0 0x0 0x0 0x7 0x7"),
                     INJECT_RANK_OTHER);
    assert_int_equal(
        inject_rank_parse("281 0x1 0x0 0x2 0xffffffff 0x0 0x8 0x7 0x7"),
        INJECT_RANK_WAITS);
    assert_int_equal(
        inject_rank_parse("281 0x1 0x0 0x2 0xffffffff 0x9 0x8 0x7 0x7"),
        INJECT_RANK_BAD);
    assert_int_equal(inject_rank_parse("281 0x1 0x0 0x2 0x5 0x9 0x8 0x7 0x7"),
                     INJECT_RANK_NEVER);
    assert_int_equal(inject_rank_parse("441 0x1 0x0 0x2 0x0 0x0 0x8 0x7 0x7"),
                     INJECT_RANK_WAITS);
    assert_int_equal(inject_rank_parse("128 0x1 0x0 0x0 0x8 0x0 0x0 0x7 0x7"),
                     INJECT_RANK_WAITS);
    assert_int_equal(inject_rank_parse("128 0x1 0x0 0x6 0x8 0x0 0x0 0x7 0x7"),
                     INJECT_RANK_NEVER);
    assert_int_equal(inject_rank_parse("426 0x1 0x0 0x1 0x1 0x0 0x8 0x7 0x7"),
                     INJECT_RANK_WAITS);
    assert_int_equal(inject_rank_parse("426 0x1 0x0 0x1 0x9 0x6 0x8 0x7 0x7"),
                     INJECT_RANK_NEVER);
    assert_int_equal(inject_rank_parse("271 0x1 0x2 0x3 0x9 0x8 0x0 0x7 0x7"),
                     INJECT_RANK_BAD);
}

#define DATA(f) ((uint32_t)offsetof(struct seccomp_data, f))

static uint32_t run_nr(const struct sock_filter *f, size_t n, int nr)
{
    struct seccomp_data d = {.nr = nr, .arch = AUDIT_ARCH_X86_64};

    return inject_seccomp_run(f, n, &d);
}

/* The form that libseccomp and systemd make. */
static void a_list_of_calls_is_understood(void **state)
{
    static const struct sock_filter f[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, DATA(arch)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, AUDIT_ARCH_X86_64, 0, 5),
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, DATA(nr)),
        BPF_JUMP(BPF_JMP | BPF_JGE | BPF_K, 0x40000000, 3, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
    };

    (void)state;
    assert_int_equal(run_nr(f, 8, SYS_close), SECCOMP_RET_ALLOW);
    assert_int_equal(run_nr(f, 8, SYS_userfaultfd), SECCOMP_RET_ERRNO | 1);
    assert_int_equal(run_nr(f, 8, 0x40000003), SECCOMP_RET_KILL_PROCESS);
}

static void arithmetic_of_filters_is_the_kernels(void **state)
{
    static const struct sock_filter f[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, DATA(nr)), /* a = nr */
        BPF_STMT(BPF_MISC | BPF_TAX, 0),              /* x = nr */
        BPF_STMT(BPF_ALU | BPF_MUL | BPF_K, 3),       /* a = 3 nr */
        BPF_STMT(BPF_ST, 2),                          /* m2 = 3 nr */
        BPF_STMT(BPF_ALU | BPF_SUB | BPF_X, 0),       /* a = 2 nr */
        BPF_STMT(BPF_ALU | BPF_LSH | BPF_K, 4),       /* a = 32 nr */
        BPF_STMT(BPF_LDX | BPF_MEM, 2),               /* x = 3 nr */
        BPF_STMT(BPF_ALU | BPF_XOR | BPF_X, 0),
        BPF_STMT(BPF_ALU | BPF_ADD | BPF_K, 1),
        BPF_STMT(BPF_ALU | BPF_NEG, 0),
        BPF_STMT(BPF_RET | BPF_A, 0),
    };

    (void)state;
    for (uint32_t nr = 0; nr < 500; nr += 7)
        assert_int_equal(run_nr(f, ARRAY_LEN(f), (int)nr),
                         0u - ((32 * nr ^ 3 * nr) + 1));
}

static void broken_filters_kill(void **state)
{
    static const struct sock_filter bad[][2] = {
        {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, sizeof(struct seccomp_data)),
         BPF_STMT(BPF_RET | BPF_A, 0)},
        {BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 2), BPF_STMT(BPF_RET | BPF_A, 0)},
        {BPF_STMT(BPF_LD | BPF_MEM, BPF_MEMWORDS),
         BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)},
        {BPF_STMT(BPF_STX, BPF_MEMWORDS),
         BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)},
        {BPF_STMT(BPF_ALU | BPF_DIV | BPF_X, 0),
         BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)},
        {BPF_STMT(BPF_JMP | BPF_JA, 0xffffffff),
         BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)},
        {BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 0, 9, 9),
         BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)},
        {BPF_STMT(BPF_LD | BPF_W | BPF_IND, 0),
         BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)},
        {BPF_STMT(BPF_LD | BPF_IMM, 1), BPF_STMT(BPF_LD | BPF_IMM, 1)},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        assert_int_equal(run_nr(bad[i], 2, 1), SECCOMP_RET_KILL_PROCESS);
    assert_int_equal(run_nr(bad[0], 0, 1), SECCOMP_RET_KILL_PROCESS);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(regions_of_this_process_are_found),
        cmocka_unit_test(regions_of_nobody_are_unreachable),
        cmocka_unit_test(a_line_of_maps_is_read_whole),
        cmocka_unit_test(lines_that_are_none_end_the_text),
        cmocka_unit_test(a_status_is_read),
        cmocka_unit_test(threads_are_ranked_by_what_they_wait_for),
        cmocka_unit_test(a_list_of_calls_is_understood),
        cmocka_unit_test(arithmetic_of_filters_is_the_kernels),
        cmocka_unit_test(broken_filters_kill),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
