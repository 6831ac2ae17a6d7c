/* SPDX-License-Identifier: MIT */
/* Tables of a recorded command line and the next one. "/vm" is the working
 * directory of all of them; nothing in it exists. */
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "../lib/launch_case.h"
#include "../lib/mem_tmpdir.h"
#include "engine/launch.h"

struct disk_case {
    const char *why;
    const char *path, *format; /* as attached; the head is /h/1.qcow2 */
    const char *in[LAUNCH_CASE_WORDS];
    const char *out[LAUNCH_CASE_WORDS];
};

static const struct disk_case disk_cases[] = {
    {"-drive with file= and format=",
     "/d.img",
     "raw",
     {"q", "-drive", "file=/d.img,if=virtio,format=raw,cache=none"},
     {"-drive", "file=/h/1.qcow2,if=virtio,format=qcow2,cache=none"}},
    {"-drive without a format: one is named",
     "/d.img",
     "qcow2",
     {"q", "--drive", "if=none,id=d,file=/d.img"},
     {"--drive", "if=none,id=d,file=/h/1.qcow2,format=qcow2"}},
    {"-drive with driver= in place of format=",
     "/d.img",
     "raw",
     {"q", "-drive", "driver=raw,file=/d.img"},
     {"-drive", "driver=qcow2,file=/h/1.qcow2"}},
    {"-drive with a nested file name keeps the options of the file",
     "/d.img",
     "raw",
     {"q", "-drive",
      "file.driver=host_device,file.filename=/d.img,file.locking=off,"
      "format=raw"},
     {"-drive", "file.driver=file,file.filename=/h/1.qcow2,file.locking=off,"
                "format=qcow2"}},
    {"-drive with file= and options below it",
     "/d.img",
     "raw",
     {"q", "-drive", "file=/d.img,file.locking=off,format=raw"},
     {"-drive", "file=/h/1.qcow2,file.locking=off,format=qcow2"}},
    {"a comma in the old path",
     "/a,b.img",
     "raw",
     {"q", "-drive", "file=/a,,b.img,format=raw"},
     {"-drive", "file=/h/1.qcow2,format=qcow2"}},
    {"a relative name, attached as absolute",
     "/vm/d.img",
     "raw",
     {"q", "-drive", "file=d.img,format=raw"},
     {"-drive", "file=/h/1.qcow2,format=qcow2"}},
    {"the file: protocol",
     "/vm/d.img",
     "raw",
     {"q", "-drive", "file=file:d.img,format=raw"},
     {"-drive", "file=/h/1.qcow2,format=qcow2"}},
    {"a raw size and a zero offset go",
     "/d.img",
     "raw",
     {"q", "-drive", "file=/d.img,format=raw,size=1048576,offset=0"},
     {"-drive", "file=/h/1.qcow2,format=qcow2"}},
    {"-hda",
     "d.img",
     "raw",
     {"q", "-hda", "d.img", "-hdb", "e.img"},
     {"-hda", "/h/1.qcow2", "-hdb", "e.img"}},
    {"an image that stands alone, behind a flag and before an option",
     "/vm/d.img",
     "qcow2",
     {"q", "-nographic", "d.img", "-m", "64"},
     {"-nographic", "-hda", "/h/1.qcow2", "-m", "64"}},
    {"-pflash",
     "/vars.fd",
     "raw",
     {"q", "-pflash", "/code.fd", "-pflash", "/vars.fd"},
     {"-pflash", "/code.fd", "-pflash", "/h/1.qcow2"}},
    {"-blockdev with the file inside",
     "/d.img",
     "qcow2",
     {"q", "-blockdev",
      "qcow2,node-name=d,file.driver=file,file.filename=/d.img"},
     {"-blockdev",
      "qcow2,node-name=d,file.driver=file,file.filename=/h/1.qcow2"}},
    {"-blockdev, raw becomes qcow2",
     "/d.img",
     "raw",
     {"q", "-blockdev",
      "node-name=d,driver=raw,file.driver=file,file.filename=/d.img,size=512"},
     {"-blockdev",
      "node-name=d,driver=qcow2,file.driver=file,file.filename=/h/1.qcow2"}},
    {"-blockdev of a file node and a format node",
     "/d.img",
     "raw",
     {"q", "-blockdev", "file,node-name=f,filename=/d.img,aio=native",
      "-blockdev", "raw,node-name=d,file=f"},
     {"-blockdev", "file,node-name=f,filename=/h/1.qcow2,aio=native",
      "-blockdev", "qcow2,node-name=d,file=f"}},
    {"-blockdev in JSON, file inside, a throttle filter above",
     "/d,1.img",
     "raw",
     {"q", "-blockdev",
      "{\"driver\":\"throttle\",\"node-name\":\"t\",\"throttle-group\":\"g\","
      "\"file\":{\"driver\":\"raw\",\"size\":512,\"file\":{\"driver\":\"file\","
      "\"filename\":\"/d,1.img\"}}}"},
     {"-blockdev",
      "{\"driver\":\"throttle\",\"node-name\":\"t\",\"throttle-group\":\"g\","
      "\"file\":{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\","
      "\"filename\":\"/h/1.qcow2\"}}}"}},
    {"-blockdev in JSON: format node over a node of its own",
     "/dev/vg/lv",
     "raw",
     {"q", "-blockdev",
      "{\"driver\":\"host_device\",\"node-name\":\"f\",\"filename\":"
      "\"/dev/vg/lv\"}",
      "-blockdev", "{\"driver\":\"raw\",\"node-name\":\"d\",\"file\":\"f\"}"},
     {"-blockdev",
      "{\"driver\":\"file\",\"node-name\":\"f\",\"filename\":\"/h/1.qcow2\"}",
      "-blockdev",
      "{\"driver\":\"qcow2\",\"node-name\":\"d\",\"file\":\"f\"}"}},
    {"a file node used as a disk is wrapped, its own options go inside",
     "/d.img",
     "file",
     {"q", "-blockdev",
      "file,node-name=d,filename=/d.img,aio=native,cache.direct=on,"
      "read-only=off,discard=unmap",
      "-device", "virtio-blk,drive=d"},
     {"-blockdev",
      "qcow2,node-name=d,file.filename=/h/1.qcow2,file.aio=native,"
      "cache.direct=on,read-only=off,discard=unmap,file.driver=file",
      "-device", "virtio-blk,drive=d"}},
    {"a file node in JSON used as a disk is wrapped",
     "/d.img",
     "raw",
     {"q", "-blockdev",
      "{\"driver\":\"file\",\"node-name\":\"d\",\"filename\":\"/d.img\","
      "\"locking\":\"off\",\"cache\":{\"direct\":true}}"},
     {"-blockdev",
      "{\"driver\":\"qcow2\",\"node-name\":\"d\",\"file\":{\"filename\":"
      "\"/h/1.qcow2\",\"locking\":\"off\",\"driver\":\"file\"},\"cache\":{"
      "\"direct\":true}}"}},
    {"a filter straight over a file node: the format goes between",
     "/d.img",
     "raw",
     {"q", "-blockdev", "driver=copy-on-read,node-name=d,file=f", "-blockdev",
      "driver=file,node-name=f,filename=/d.img"},
     {"-blockdev", "driver=copy-on-read,node-name=d,file=f", "-blockdev",
      "driver=qcow2,node-name=f,file.filename=/h/1.qcow2,file.driver=file"}},
    {"how the recorded start began is left out",
     "/d.img",
     "raw",
     {"q", "-S", "-hda", "/d.img", "--incoming", "tcp:0:1", "-loadvm", "x",
      "--loadvm", "y", "-runas", "u", "-append", "-S", "-run-with", "user=u",
      "-run-with", "async-teardown=on,user=u,exit-with-parent=on"},
     {"-hda", "/h/1.qcow2", "-append", "-S", "-run-with", "async-teardown=on"}},
};

static void disks_are_put_into_the_command_line(void **state)
{
    size_t i;

    (void)state;
    for (i = 0; i < sizeof(disk_cases) / sizeof(disk_cases[0]); i++) {
        const struct disk_case *c = &disk_cases[i];
        struct launch_record rec = launch_case_record(c->in);
        struct launch_disk disk = {"d", c->path, c->format, "/h/1.qcow2",
                                   "qcow2"};
        struct launch_change change = {.disks = &disk, .disk_count = 1};
        struct qstill_error err = {0};
        char **argv = NULL;

        if (launch_build(&rec, &change, &argv, &err) < 0)
            fail_msg("%s: %s", c->why, err.message);
        assert_string_equal(argv[0], "/usr/bin/qemu");
        launch_case_assert(c->why, argv + 1, c->out);
        launch_argv_free(argv);
    }
}

/* The new argument must mean to QEMU what we wrote: commas in the head. */
static void a_comma_in_the_head_path_is_written_as_each_form_needs(void **state)
{
    static const char *const in[] = {
        "q",
        "-drive",
        "file=/a,format=raw",
        "-hdb",
        "/b",
        "-blockdev",
        "{\"driver\":\"raw\",\"file\":{\"driver\":\"file\",\"filename\":"
        "\"/c\"}}",
        NULL};
    static const char *const out[] = {
        "-drive",
        "file=/h,,1,format=qcow2",
        "-hdb",
        "/h,2",
        "-blockdev",
        "{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":"
        "\"/h,3\"}}",
        NULL};
    struct launch_record rec = launch_case_record(in);
    struct launch_disk disks[] = {
        {"a", "/a", "raw", "/h,1", "qcow2"},
        {"b", "/b", "raw", "/h,2", "qcow2"},
        {"c", "/c", "raw", "/h,3", "qcow2"},
    };
    struct launch_change change = {.disks = disks, .disk_count = 3};
    struct qstill_error err = {0};
    char **argv = NULL;

    (void)state;
    assert_int_equal(launch_build(&rec, &change, &argv, &err), 0);
    launch_case_assert("commas", argv + 1, out);
    launch_argv_free(argv);
}

static void a_disk_still_on_its_own_image_is_left_alone(void **state)
{
    static const char *const in[] = {
        "q", "-hda", "d.img", "-drive", "file=e.img,offset=512,format=raw",
        NULL};
    struct launch_record rec = launch_case_record(in);
    struct launch_disk disks[] = {
        {"a", "/vm/d.img", "raw", "/vm/d.img", "raw"},
        {"b", "e.img", "raw", "/vm/e.img", "raw"},
    };
    struct launch_change change = {.disks = disks, .disk_count = 2};
    struct qstill_error err = {0};
    char **argv = NULL;

    (void)state;
    assert_int_equal(launch_build(&rec, &change, &argv, &err), 0);
    launch_case_assert("unchanged", argv + 1, in + 1);
    launch_argv_free(argv);
}

static const struct {
    const char *path, *format, *head_format;
    const char *in[LAUNCH_CASE_WORDS];
    const char *says;
} refused[] = {
    {"/d.img",
     "raw",
     "qcow2",
     {"q", "-m", "64"},
     "disk d: the command line of QEMU names /d.img nowhere"},
    {"/d.img",
     "raw",
     "qcow2",
     {"q", "-hda", "/d.img", "-cdrom", "/d.img"},
     "disk d: the command line of QEMU names /d.img more than once"},
    {"/d.img",
     "raw",
     "qcow2",
     {"q", "-drive", "file=json:{\"driver\":\"file\"}"},
     "disk d: the command line of QEMU names /d.img nowhere"},
    {"/d.img",
     "raw",
     "qcow2",
     {"q", "-drive", "file=nbd:/d.img"},
     "disk d: the command line of QEMU names /d.img nowhere"},
    {"/d.img",
     "raw",
     "qcow2",
     {"q", "-drive", "file=/d.img,format=qcow2"},
     "disk d: /d.img is raw for the VM and qcow2 in the command line of QEMU"},
    {"/d.img",
     "raw",
     "qcow2",
     {"q", "-drive", "file=/d.img,format=raw,offset=512"},
     "disk d: the command line of QEMU gives an offset into the file for "
     "/d.img, which a new image cannot take over"},
    {"/d.img",
     "raw",
     "qcow2",
     {"q", "-drive", "file=/d.img,snapshot=on"},
     "disk d: the command line of QEMU gives \"snapshot\" (writes go to a "
     "temporary file) for /d.img, which a new image cannot take over"},
    {"/d.img",
     "qcow2",
     "qcow2",
     {"q", "-blockdev",
      "driver=qcow2,file.driver=file,file.filename=/d.img,encrypt.format=luks,"
      "encrypt.key-secret=s"},
     "disk d: the command line of QEMU gives an encryption key for /d.img, "
     "which a new image cannot take over"},
    {"/d.img",
     "qcow2",
     "qcow2",
     {"q", "-blockdev",
      "driver=qcow2,file.driver=file,file.filename=/d.img,backing=b"},
     "disk d: the command line of QEMU gives a backing chain for /d.img, which "
     "a new image cannot take over"},
    {"/d.img",
     "qcow2",
     "qcow2",
     {"q", "-drive", "file=/d.img,backing.file.filename=/b"},
     "disk d: the command line of QEMU gives a backing chain for /d.img, which "
     "a new image cannot take over"},
    {"/d.img",
     "qcow2",
     "qcow2",
     {"q", "-blockdev",
      "{\"driver\":\"qcow2\",\"backing\":null,\"file\":{\"driver\":\"file\","
      "\"filename\":\"/d.img\"}}"},
     "disk d: the command line of QEMU gives \"no backing file\" for /d.img, "
     "which a new image cannot take over"},
    {"/d.img",
     "raw",
     "qcow2",
     {"q", "-blockdev", "driver=file,node-name=f,filename=/d.img", "-blockdev",
      "driver=raw,file=f,size=512", "-blockdev",
      "driver=raw,file=f,offset=512"},
     "disk d: the command line of QEMU gives several format nodes for /d.img, "
     "which a new image cannot take over"},
    {"/d.img",
     "qcow2",
     "qcow2",
     {"q", "-blockdev", "driver=file,node-name=f,filename=/d.img"},
     "disk d: the command line of QEMU gives no format node for /d.img, which "
     "a new image cannot take over"},
    {"/d.img",
     "raw",
     "qcow2",
     {"q", "-drive", "id=x,file=/d.img", "-set", "drive.x.file=/e.img"},
     "disk d: the command line of QEMU gives options with -set for /d.img, "
     "which a new image cannot take over"},
    {"/d.img",
     "raw",
     "qcow2",
     {"q", "-drive", "if=none,id=d,driver=file,filename=/d.img"},
     "disk d: the command line of QEMU gives no format node for /d.img, which "
     "a new image cannot take over"},
    {"/d.img",
     "raw",
     "raw",
     {"q", "-hda", "/d.img"},
     "disk d: /h/1 is raw, and only a qcow2 image can take the place of "
     "/d.img"},
};

static void what_a_new_image_cannot_replace_is_refused(void **state)
{
    size_t i;

    (void)state;
    for (i = 0; i < sizeof(refused) / sizeof(refused[0]); i++) {
        struct launch_record rec = launch_case_record(refused[i].in);
        struct launch_disk disk = {"d", refused[i].path, refused[i].format,
                                   "/h/1", refused[i].head_format};
        struct launch_change change = {.disks = &disk, .disk_count = 1};
        struct qstill_error err = {0};
        char **argv = NULL;

        assert_int_equal(launch_build(&rec, &change, &argv, &err),
                         QSTILL_E_PRECONDITION);
        assert_string_equal(err.message, refused[i].says);
        assert_null(argv);
    }
}

static void two_disks_of_one_image_are_refused(void **state)
{
    static const char *const in[] = {"q", "-hda", "d.img", NULL};
    struct launch_record rec = launch_case_record(in);
    struct launch_disk disks[] = {
        {"a", "d.img", "raw", "/h/1", "qcow2"},
        {"b", "/vm/d.img", "raw", "/h/2", "qcow2"},
    };
    struct launch_change change = {.disks = disks, .disk_count = 2};
    struct qstill_error err = {0};
    char **argv = NULL;

    (void)state;
    assert_int_equal(launch_build(&rec, &change, &argv, &err),
                     QSTILL_E_PRECONDITION);
    assert_string_equal(err.message, "disks a and b are both /vm/d.img");
}

/* ------------------------------------------------------- with real files */

struct fixture {
    char dir[128];
    int dirfd;
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));

    f->dirfd = mem_tmpdir_make(f->dir);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;

    mem_tmpdir_remove(f->dir, f->dirfd);
    free(f);
    return 0;
}

static void write_file(struct fixture *f, const char *name, const void *data,
                       size_t len)
{
    int fd = openat(f->dirfd, name, O_WRONLY | O_CREAT | O_TRUNC, 0600);

    assert_true(fd >= 0);
    assert_int_equal(write(fd, data, len), (ssize_t)len);
    close(fd);
}

static void an_image_is_found_by_what_it_is_when_names_differ(void **state)
{
    struct fixture *f = *state;
    const char *in[] = {"q", "-drive", "file=link.img,format=raw", NULL};
    static const char *const out[] = {"-drive", "file=/h/1,format=qcow2", NULL};
    struct launch_record rec = launch_case_record(in);
    char path[200];
    struct launch_disk disk = {"d", path, "raw", "/h/1", "qcow2"};
    struct launch_change change = {.disks = &disk, .disk_count = 1};
    struct qstill_error err = {0};
    char **argv = NULL;

    write_file(f, "d.img", "x", 1);
    assert_int_equal(symlinkat("d.img", f->dirfd, "link.img"), 0);
    rec.cwd = f->dir;
    snprintf(path, sizeof(path), "%s/./d.img", f->dir);
    assert_int_equal(launch_build(&rec, &change, &argv, &err), 0);
    launch_case_assert("link", argv + 1, out);
    launch_argv_free(argv);
}

static void no_backing_may_go_when_the_image_names_none(void **state)
{
    struct fixture *f = *state;
    static const char *const in[] = {
        "q", "-blockdev",
        "{\"driver\":\"qcow2\",\"backing\":null,\"file\":{\"driver\":\"file\","
        "\"filename\":\"d.img\"}}",
        NULL};
    static const char *const out[] = {
        "-blockdev",
        "{\"driver\":\"qcow2\",\"file\":{\"driver\":\"file\",\"filename\":"
        "\"/h/1\"}}",
        NULL};
    struct launch_record rec = launch_case_record(in);
    struct launch_disk disk = {"d", "d.img", "qcow2", "/h/1", "qcow2"};
    struct launch_change change = {.disks = &disk, .disk_count = 1};
    uint8_t head[104] = {'Q', 'F', 'I', 0xfb, 0, 0, 0, 3};
    struct qstill_error err = {0};
    char **argv = NULL;

    rec.cwd = f->dir;
    write_file(f, "d.img", head, sizeof(head));
    assert_int_equal(launch_build(&rec, &change, &argv, &err), 0);
    launch_case_assert("backing=null", argv + 1, out);
    launch_argv_free(argv);

    head[15] = 104; /* a backing file name behind the header */
    write_file(f, "d.img", head, sizeof(head));
    argv = NULL;
    assert_int_equal(launch_build(&rec, &change, &argv, &err),
                     QSTILL_E_PRECONDITION);
    assert_non_null(strstr(err.message, "gives \"no backing file\" for d.img"));
}

static void a_paused_incoming_start_is_asked_for_at_the_end(void **state)
{
    static const char *const in[] = {"q", "-m", "64", "-S", NULL};
    static const char *const out[] = {"-m",        "64",    "-S",
                                      "-incoming", "defer", NULL};
    struct launch_record rec = launch_case_record(in);
    struct launch_change change = {.paused = true, .incoming = "defer"};
    struct qstill_error err = {0};
    char **argv = NULL;

    (void)state;
    assert_int_equal(launch_build(&rec, &change, &argv, &err), 0);
    launch_case_assert("paused", argv + 1, out);
    launch_argv_free(argv);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(disks_are_put_into_the_command_line),
        cmocka_unit_test(
            a_comma_in_the_head_path_is_written_as_each_form_needs),
        cmocka_unit_test(a_disk_still_on_its_own_image_is_left_alone),
        cmocka_unit_test(what_a_new_image_cannot_replace_is_refused),
        cmocka_unit_test(two_disks_of_one_image_are_refused),
        cmocka_unit_test_setup_teardown(
            an_image_is_found_by_what_it_is_when_names_differ, setup, teardown),
        cmocka_unit_test_setup_teardown(
            no_backing_may_go_when_the_image_names_none, setup, teardown),
        cmocka_unit_test(a_paused_incoming_start_is_asked_for_at_the_end),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
