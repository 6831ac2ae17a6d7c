/* SPDX-License-Identifier: MIT */
#include "mem_set.h"

#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/file.h"
#include "memstate/verify.h"

const uint8_t mem_set_device[] = {'Q', 'E', 'V', 'M', 0,    0, 0, 3, 4, 0, 0,
                                  0,   9,   1,   'x', 0,    0, 0, 0, 0, 0, 0,
                                  1,   7,   8,   9,   0x7e, 0, 0, 0, 9, 0};
const size_t mem_set_device_len = sizeof(mem_set_device);

int mem_set_device_fd(void)
{
    int fd = memfd_create("device", MFD_CLOEXEC);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, mem_set_device, mem_set_device_len),
                     mem_set_device_len);
    return fd;
}

void mem_set_fill(uint8_t *data, size_t len, unsigned zeros, unsigned seed)
{
    uint64_t x = seed * 0x9e3779b97f4a7c15u + 1;
    bool zero = false;

    memset(data, 0, len);
    for (size_t page = 0; page < len / 4096; page++) {
        x = x * 6364136223846793005u + 1442695040888963407u;
        if (x >> 60 < 4) /* a new run one time in four */
            zero = (x >> 32) % 100 < zeros;
        if (zero)
            continue;
        for (size_t i = 0; i < 4096; i += 8) {
            x = x * 6364136223846793005u + 1442695040888963407u;
            memcpy(data + page * 4096 + i, &x, 8);
        }
        data[page * 4096 + 4095] = 1;
    }
}

static void wait_fd(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLIN};

    assert_int_equal(poll(&p, 1, 20000), 1);
}

struct capture_status mem_set_wait(struct capture *c, enum mem_set_until until)
{
    struct capture_status s;

    for (;;) {
        capture_poll(c, &s);
        if (s.complete || (until == MEM_SET_READY && s.ready) ||
            (until == MEM_SET_INSTANT && s.instant_taken))
            return s;
        wait_fd(capture_fd(c));
    }
}

void mem_set_capture(int dirfd, const struct capture_source *blocks,
                     size_t count)
{
    CLEANUP(capture_closep) struct capture *c = NULL;
    CLEANUP(closep) int device = mem_set_device_fd();
    struct capture_options o = {.dirfd = dirfd};
    struct capture_result result;
    struct qstill_error err;

    assert_int_equal(capture_copy_open(&c, getpid(), blocks, count, &o, &err),
                     0);
    assert_true(mem_set_wait(c, MEM_SET_READY).ready);
    assert_int_equal(capture_device_state(c, device, &err), 0);
    assert_int_equal(capture_instant(c, &err), 0);
    mem_set_wait(c, MEM_SET_COMPLETE);
    if (capture_finish(c, &result, &err) < 0)
        fail_msg("%s", err.message);
}

void mem_set_expect(int dirfd, const char *id, const uint8_t *data, size_t len)
{
    CLEANUP(freep) uint8_t *found = malloc(len + 1);
    CLEANUP(closep) int fd = -1;
    char name[RAMSET_NAME_SIZE];
    struct qstill_error err;
    size_t got;

    assert_int_equal(ramset_file_name(id, name, &err), 0);
    assert_int_equal(file_openat(dirfd, name, 0, 0, &fd, &err), 0);
    assert_int_equal(file_read_upto(fd, found, len + 1, 0, &got, &err), 0);
    assert_int_equal(got, len);
    for (size_t page = 0; page < len / 4096; page++)
        if (memcmp(found + page * 4096, data + page * 4096, 4096) != 0)
            fail_msg("page %zu of %s differs", page, id);
}

int mem_set_verify(int dirfd, struct qstill_error *err)
{
    CLEANUP(verify_closep) struct verify *v = NULL;
    struct verify_options o = {.dirfd = dirfd};
    struct verify_status s = {0};

    err->code = 0;
    if (verify_open(&v, &o, err) < 0)
        return err->code;
    for (verify_poll(v, &s); !s.complete; verify_poll(v, &s))
        wait_fd(verify_fd(v));
    return verify_finish(v, err);
}

int mem_set_wait_restore(struct restore *r, struct restore_result *result,
                         struct qstill_error *err)
{
    struct restore_status s = {0};

    for (restore_poll(r, &s); !s.complete; restore_poll(r, &s))
        wait_fd(restore_fd(r));
    return restore_finish(r, result, err);
}
