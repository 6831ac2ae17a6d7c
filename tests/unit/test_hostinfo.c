/* SPDX-License-Identifier: MIT */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <cmocka.h>

#include "../lib/mem_tmpdir.h"
#include "base/sum.h"
#include "engine/hostinfo.h"

static void the_first_cpu_of_cpuinfo_is_read(void **state)
{
    struct hostinfo h = {0};

    (void)state;
    hostinfo_parse_cpuinfo(
        &h, "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel\t\t: 85\n"
            "model name\t: Intel(R) Xeon(R) Gold: 6248\nmicrocode\t: "
            "0x5003604\nflags\t\t: fpu\n\nprocessor\t: 1\nmicrocode\t: 0x1\n");
    assert_string_equal(h.cpu_vendor, "GenuineIntel");
    assert_string_equal(h.cpu_model, "Intel(R) Xeon(R) Gold: 6248");
    assert_string_equal(h.microcode, "0x5003604");
}

static void odd_cpuinfo_leaves_members_empty_or_cut(void **state)
{
    struct hostinfo h = {0};
    char text[400];

    (void)state;
    hostinfo_parse_cpuinfo(&h, "");
    hostinfo_parse_cpuinfo(&h, "vendor_id\nmodel name\t:\nmicrocode :");
    assert_string_equal(h.cpu_vendor, "");
    assert_string_equal(h.cpu_model, "");
    assert_string_equal(h.microcode, "");
    strcpy(text, "model name\t: ");
    memset(text + 13, 'x', 300);
    text[313] = '\0';
    hostinfo_parse_cpuinfo(&h, text);
    assert_int_equal(strlen(h.cpu_model), HOSTINFO_TEXT_MAX - 1);
}

static void this_host_has_a_name_a_kernel_and_a_boot(void **state)
{
    struct qstill_error err = {0};
    struct hostinfo h = {0};
    struct utsname u;

    (void)state;
    assert_int_equal(hostinfo_read(&h, &err), 0);
    uname(&u);
    assert_string_equal(h.hostname, u.nodename);
    assert_string_equal(h.kernel, u.release);
    assert_int_equal(strlen(h.boot_id), 36);
    /* 100 MHz to 10 GHz, or unknown */
    assert_true(h.tsc_khz == 0 || (h.tsc_khz > 100000 && h.tsc_khz < 10000000));
}

static void tsc_frequencies_may_be_as_far_apart_as_kvm_lets_them(void **state)
{
    (void)state;
    assert_true(hostinfo_same_tsc(2000000, 2000000));
    assert_true(hostinfo_same_tsc(2000000, 2000499));
    assert_true(hostinfo_same_tsc(2000499, 2000000));
    assert_false(hostinfo_same_tsc(2000000, 2000600));
    assert_false(hostinfo_same_tsc(2000000, 1999400));
    /* what is not known cannot be compared */
    assert_true(hostinfo_same_tsc(0, 2000000));
    assert_true(hostinfo_same_tsc(2000000, 0));
}

/* Measured or told: twice the same. */
static void the_tsc_frequency_is_the_same_each_time(void **state)
{
    struct hostinfo a, b;
    struct qstill_error err;

    (void)state;
    assert_int_equal(hostinfo_read(&a, &err), 0);
    assert_int_equal(hostinfo_read(&b, &err), 0);
    hostinfo_need_tsc(&a);
    hostinfo_need_tsc(&b);
    if (a.tsc_khz == 0)
        skip(); /* this CPU's does not run evenly */
    assert_true(a.tsc_khz > 500000 && a.tsc_khz < 10000000);
    assert_true(hostinfo_same_tsc(a.tsc_khz, b.tsc_khz));
}

static void the_sum_of_a_file_is_that_of_its_bytes(void **state)
{
    /* 1 MiB, the chunk, and one byte: the seam must not show. */
    const size_t len = (1 << 20) + 1;
    char dir[128], path[200], got[HOSTINFO_SUM_MAX], want[HOSTINFO_SUM_MAX];
    struct qstill_error err = {0};
    uint8_t *data = malloc(len);
    int fd, dirfd = mem_tmpdir_make(dir);
    size_t i;

    (void)state;
    for (i = 0; i < len; i++)
        data[i] = (uint8_t)(i * 7 + i / 251);
    fd = openat(dirfd, "bin", O_WRONLY | O_CREAT, 0600);
    assert_int_equal(write(fd, data, len), (ssize_t)len);
    close(fd);
    snprintf(path, sizeof(path), "%s/bin", dir);
    assert_int_equal(hostinfo_file_sum(path, got, &err), 0);
    snprintf(want, sizeof(want), "xxh3:%016llx",
             (unsigned long long)sum_bytes(data, len, 0));
    assert_string_equal(got, want);
    free(data);

    assert_int_equal(unlinkat(dirfd, "bin", 0), 0);
    assert_int_equal(hostinfo_file_sum(path, got, &err), QSTILL_E_NOT_FOUND);
    assert_non_null(strstr(err.message, "cannot open "));
    assert_int_equal(hostinfo_file_sum("/dev/zero", got, &err),
                     QSTILL_E_PRECONDITION);
    assert_string_equal(err.message, "/dev/zero is no regular file");
    assert_string_equal(got, want);
    mem_tmpdir_remove(dir, dirfd);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_first_cpu_of_cpuinfo_is_read),
        cmocka_unit_test(odd_cpuinfo_leaves_members_empty_or_cut),
        cmocka_unit_test(this_host_has_a_name_a_kernel_and_a_boot),
        cmocka_unit_test(tsc_frequencies_may_be_as_far_apart_as_kvm_lets_them),
        cmocka_unit_test(the_tsc_frequency_is_the_same_each_time),
        cmocka_unit_test(the_sum_of_a_file_is_that_of_its_bytes),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
