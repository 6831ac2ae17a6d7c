/* SPDX-License-Identifier: MIT */
/* New images, what info says about them, and a change of their backing name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/cleanup.h"
#include "qcow2/create.h"
#include "qcow2/info.h"
#include "qcow2/repoint.h"

static int dir = -1;
static char dir_path[] = "/tmp/qstill-create-XXXXXX";

static int make_dir(void **state)
{
    (void)state;
    assert_non_null(mkdtemp(dir_path));
    dir = open(dir_path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return dir < 0 ? -1 : 0;
}

static int drop_dir(void **state)
{
    (void)state;
    close(dir);
    return rmdir(dir_path);
}

static int drop_image(void **state)
{
    (void)state;
    unlinkat(dir, "i", 0);
    return 0;
}

static void create_ok(const struct qcow2_create_options *o)
{
    struct qstill_error err;

    if (qcow2_create(io_real(), dir, "i", o, &err) < 0)
        fail_msg("%s", err.message);
}

static void read_ok(struct qcow2_info *info)
{
    struct qstill_error err;

    if (qcow2_info_read(io_real(), dir, "i", QCOW2_FORMAT_QCOW2, info, &err) <
        0)
        fail_msg("%s", err.message);
}

static void an_overlay_is_what_was_asked_for(void **state)
{
    struct qcow2_create_options o = QCOW2_CREATE_OPTIONS_INIT;
    CLEANUP(qcow2_info_fini) struct qcow2_info info = {0};
    struct stat st;

    (void)state;
    o.virtual_size = 3ull << 40;
    o.backing = "base.img";
    o.backing_format = "raw";
    o.mode = 0640;
    create_ok(&o);
    read_ok(&info);
    assert_int_equal(info.virtual_size, 3ull << 40);
    assert_int_equal(info.header.cluster_bits, 16);
    assert_string_equal(info.header.backing, "base.img");
    assert_string_equal(info.header.backing_format, "raw");
    assert_true(info.header.backing_offset < QCOW2_SECTOR);
    assert_int_equal(fstatat(dir, "i", &st, 0), 0);
    assert_int_equal(st.st_mode & 07777, 0640);
    assert_int_equal(st.st_ino, info.ino);
    assert_int_equal(st.st_size % 65536, 0);
}

static void a_long_name_stands_outside_the_first_sector(void **state)
{
    struct qcow2_create_options o = QCOW2_CREATE_OPTIONS_INIT;
    CLEANUP(qcow2_info_fini) struct qcow2_info info = {0};
    char name[QCOW2_MAX_BACKING_NAME + 2];
    struct qstill_error err;

    (void)state;
    memset(name, 'n', sizeof(name));
    name[QCOW2_MAX_BACKING_NAME] = '\0';
    o.virtual_size = 512;
    o.backing = name;
    o.backing_format = "qcow2";
    create_ok(&o);
    read_ok(&info);
    assert_string_equal(info.header.backing, name);
    assert_int_equal(info.header.backing_offset, 4096);
    drop_image(NULL);

    name[QCOW2_MAX_BACKING_NAME] = 'n';
    name[QCOW2_MAX_BACKING_NAME + 1] = '\0';
    assert_int_equal(qcow2_create(io_real(), dir, "i", &o, &err),
                     QSTILL_E_PRECONDITION);
    assert_string_equal(err.message,
                        "creating i: the backing file's name has 1024 bytes, "
                        "qcow2 holds 1 to 1023");
    assert_int_equal(faccessat(dir, "i", F_OK, 0), -1);
}

static void impossible_images_are_refused_and_leave_no_file(void **state)
{
    static const struct {
        uint64_t size;
        uint32_t bits;
        const char *backing;
        int code;
        const char *message;
    } cases[] = {
        {513, 0, NULL, QSTILL_E_USAGE,
         "creating i: a virtual size of 513 bytes is not possible"},
        {512, 8, NULL, QSTILL_E_USAGE,
         "creating i: clusters of 2^8 bytes are not possible"},
        {1ull << 40, 9, NULL, QSTILL_E_PRECONDITION,
         "creating i: a virtual size of 1099511627776 bytes needs larger "
         "clusters than 2^9 bytes"},
        {512, 0, "b", QSTILL_E_USAGE,
         "creating i: a backing file needs the name of its format"},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct qcow2_create_options o = QCOW2_CREATE_OPTIONS_INIT;
        struct qstill_error err;

        o.virtual_size = cases[i].size;
        o.cluster_bits = cases[i].bits;
        o.backing = cases[i].backing;
        assert_int_equal(qcow2_create(io_real(), dir, "i", &o, &err),
                         cases[i].code);
        assert_string_equal(err.message, cases[i].message);
        assert_int_equal(faccessat(dir, "i", F_OK, 0), -1);
    }
}

static void an_existing_name_is_busy_and_keeps_its_file(void **state)
{
    struct qcow2_create_options o = QCOW2_CREATE_OPTIONS_INIT;
    struct qstill_error err;

    (void)state;
    o.virtual_size = 1 << 20;
    create_ok(&o);
    assert_int_equal(qcow2_create(io_real(), dir, "i", &o, &err),
                     QSTILL_E_BUSY);
    assert_string_equal(err.message, "cannot open i: File exists");
    assert_int_equal(faccessat(dir, "i", F_OK, 0), 0);
}

static int failing_fsync(const struct io *io, int fd)
{
    (void)io;
    (void)fd;
    return -ENOSPC;
}

static void a_failed_fsync_leaves_no_file(void **state)
{
    struct qcow2_create_options o = QCOW2_CREATE_OPTIONS_INIT;
    struct io_ops table = io_real_ops;
    struct io io = {&table, NULL};
    struct qstill_error err;

    (void)state;
    table.fsync = failing_fsync;
    o.virtual_size = 1 << 20;
    assert_int_equal(qcow2_create(&io, dir, "i", &o, &err), QSTILL_E_NO_SPACE);
    assert_string_equal(
        err.message,
        "creating i: cannot make i durable: No space left on device");
    assert_int_equal(faccessat(dir, "i", F_OK, 0), -1);
}

/* Records what happens to the first sector. */
struct seen {
    unsigned sector_writes;
    unsigned syncs_before;
    unsigned syncs_after;
};

static ssize_t seeing_pwrite(const struct io *io, int fd, const void *data,
                             size_t len, uint64_t off)
{
    struct seen *s = io->user;

    if (off == 0) {
        assert_int_equal(len, QCOW2_SECTOR);
        s->sector_writes++;
    } else {
        assert_true(off >= QCOW2_SECTOR);
        assert_int_equal(s->syncs_before, 0);
    }
    return io_real_ops.pwrite(io, fd, data, len, off);
}

static int seeing_fdatasync(const struct io *io, int fd)
{
    struct seen *s = io->user;

    if (s->sector_writes)
        s->syncs_after++;
    else
        s->syncs_before++;
    return io_real_ops.fdatasync(io, fd);
}

static void a_new_backing_name_is_one_durable_sector(void **state)
{
    struct qcow2_create_options o = QCOW2_CREATE_OPTIONS_INIT;
    struct io_ops table = io_real_ops;
    struct seen seen = {0, 0, 0};
    struct io io = {&table, &seen};
    CLEANUP(qcow2_info_fini) struct qcow2_info info = {0};
    CLEANUP(closep) int fd = -1;
    struct qstill_error err;
    char name[900];

    (void)state;
    table.pwrite = seeing_pwrite;
    table.fdatasync = seeing_fdatasync;
    memset(name, 'x', sizeof(name));
    name[sizeof(name) - 1] = '\0';
    o.virtual_size = 1 << 20;
    o.backing = name;
    o.backing_format = "qcow2";
    create_ok(&o);
    fd = openat(dir, "i", O_RDWR | O_CLOEXEC);
    name[0] = 'y';
    assert_int_equal(qcow2_repoint(&io, fd, "i", name, "raw", &err), 0);
    assert_int_equal(seen.sector_writes, 1);
    assert_int_equal(seen.syncs_before, 1);
    assert_int_equal(seen.syncs_after, 1);
    read_ok(&info);
    assert_string_equal(info.header.backing, name);
    assert_string_equal(info.header.backing_format, "raw");
    assert_int_equal(info.header.backing_offset, 8192);

    assert_int_equal(qcow2_repoint(io_real(), fd, "i", NULL, NULL, &err), 0);
    qcow2_info_fini(&info);
    read_ok(&info);
    assert_false(info.header.has_backing);
    assert_false(info.header.has_format);
    assert_int_equal(info.virtual_size, 1 << 20);
}

static void unknown_extensions_survive_a_new_backing_name(void **state)
{
    struct qcow2_create_options o = QCOW2_CREATE_OPTIONS_INIT;
    CLEANUP(qcow2_info_fini) struct qcow2_info info = {0};
    CLEANUP(closep) int fd = -1;
    struct qstill_error err;
    uint8_t ext[24] = {0x12, 0x34, 0x56, 0x78, 0, 0, 0, 5, 'h', 'e', 'l', 'l'};

    (void)state;
    o.virtual_size = 1 << 20;
    create_ok(&o);
    fd = openat(dir, "i", O_RDWR | O_CLOEXEC);
    assert_int_equal(pwrite(fd, ext, sizeof(ext), QCOW2_V3_HEADER), 24);
    assert_int_equal(qcow2_repoint(io_real(), fd, "i", "b", "qcow2", &err), 0);
    read_ok(&info);
    assert_string_equal(info.header.backing, "b");
    assert_int_equal(info.header.other.len, 16);
    assert_memory_equal(info.header.other.data, ext, 16);

    /* an extension that leaves no room: refused, nothing changed */
    {
        uint8_t big[408] = {0x11, 0x11, 0x11, 0x11, 0, 0, 1, 0x88};
        uint8_t before[4096], after[4096];

        assert_int_equal(pwrite(fd, big, sizeof(big), QCOW2_V3_HEADER), 408);
        assert_int_equal(pwrite(fd, "\0\0\0\0\0\0\0\0\0", 8, 112 + 400), 8);
        assert_int_equal(pwrite(fd, "\0\0\0\0\0\0\x10\x00", 8, 8), 8);
        assert_int_equal(pwrite(fd, "b", 1, 4096), 1);
        assert_int_equal(pread(fd, before, sizeof(before), 0), 4096);
        assert_int_equal(qcow2_repoint(io_real(), fd, "i", "c", "qcow2", &err),
                         QSTILL_E_PRECONDITION);
        assert_string_equal(err.message,
                            "the header of i has 536 bytes of extensions and "
                            "cannot be replaced in one sector");
        assert_int_equal(pread(fd, after, sizeof(after), 0), 4096);
        assert_memory_equal(before, after, sizeof(before));
    }
}

static void a_vm_state_image_holds_the_state_in_its_snapshot(void **state)
{
    CLEANUP(qcow2_info_fini) struct qcow2_info info = {0};
    CLEANUP(closep) int fd = -1;
    char vmstate[70000], back[70000];
    uint8_t entry[80], l1[16], l2[16];
    struct qstill_error err;

    (void)state;
    memset(vmstate, 'v', sizeof(vmstate));
    if (qcow2_create_vmstate(io_real(), dir, "i", "tag", vmstate,
                             sizeof(vmstate), &err) < 0)
        fail_msg("%s", err.message);
    read_ok(&info);
    assert_int_equal(info.virtual_size, 65536);
    assert_int_equal(info.header.nb_snapshots, 1);
    fd = openat(dir, "i", O_RDONLY | O_CLOEXEC);
    assert_int_equal(pread(fd, entry, 80, (off_t)info.header.snapshots_offset),
                     80);
    assert_int_equal(get_be64(entry + 40), sizeof(vmstate));
    assert_memory_equal(entry + 64, "1tag", 4);
    assert_int_equal(pread(fd, l1, 16, (off_t)get_be64(entry)), 16);
    assert_int_equal(get_be64(l1), 0);
    assert_int_equal(
        pread(fd, l2, 16, (off_t)(get_be64(l1 + 8) & QCOW2_L1_OFFSET_MASK)),
        16);
    assert_int_equal(pread(fd, back, sizeof(back),
                           (off_t)(get_be64(l2) & QCOW2_L2_OFFSET_MASK)),
                     sizeof(back));
    assert_memory_equal(back, vmstate, sizeof(back));
}

static void raw_files_are_never_looked_into(void **state)
{
    struct qcow2_create_options o = QCOW2_CREATE_OPTIONS_INIT;
    CLEANUP(qcow2_info_fini) struct qcow2_info info = {0};
    struct qstill_error err;

    (void)state;
    o.virtual_size = 1 << 30;
    create_ok(&o);
    assert_int_equal(
        qcow2_info_read(io_real(), dir, "i", QCOW2_FORMAT_RAW, &info, &err), 0);
    assert_int_equal(info.virtual_size, info.file_size);
    assert_int_equal(info.header.version, 0);
    assert_int_equal(
        qcow2_info_read(io_real(), dir, "j", QCOW2_FORMAT_RAW, &info, &err),
        QSTILL_E_NOT_FOUND);
}

#define ON_IMAGE(test) cmocka_unit_test_teardown(test, drop_image)

int main(void)
{
    const struct CMUnitTest tests[] = {
        ON_IMAGE(an_overlay_is_what_was_asked_for),
        ON_IMAGE(a_long_name_stands_outside_the_first_sector),
        ON_IMAGE(impossible_images_are_refused_and_leave_no_file),
        ON_IMAGE(an_existing_name_is_busy_and_keeps_its_file),
        ON_IMAGE(a_failed_fsync_leaves_no_file),
        ON_IMAGE(a_new_backing_name_is_one_durable_sector),
        ON_IMAGE(unknown_extensions_survive_a_new_backing_name),
        ON_IMAGE(a_vm_state_image_holds_the_state_in_its_snapshot),
        ON_IMAGE(raw_files_are_never_looked_into),
    };

    return cmocka_run_group_tests(tests, make_dir, drop_dir);
}
