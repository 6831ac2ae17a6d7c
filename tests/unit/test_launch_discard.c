/* SPDX-License-Identifier: MIT */
/* What a command line says of a disk's node, whichever way it is written. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include <string.h>

#include "base/checked.h"
#include "engine/launch_discard.h"
#include "engine/session.h"

#define D "/d/disk.qcow2"

static void expect(const char *const *words, const char *discard,
                   const char *aio)
{
    char *argv[8] = {(char *)(uintptr_t) "qemu"};
    struct vm_disk d = {
        .name = "vda", .attach_path = D, .attach_format = "qcow2"};
    struct session s = {.rec = {.has_launch = true}};
    const char *said;

    for (size_t i = 0; words[i]; i++)
        argv[i + 1] = (char *)(uintptr_t)words[i];
    s.rec.launch.argv = argv;
    s.rec.launch.cwd = (char *)(uintptr_t) "/";
    said = launch_discard(&s, &d);
    assert_true(discard ? said && strcmp(said, discard) == 0 : !said);
    said = launch_aio(&s, &d);
    assert_true(aio ? said && strcmp(said, aio) == 0 : !said);
}

#define EXPECT(discard, aio, ...)                                              \
    expect((const char *const[]){__VA_ARGS__, NULL}, discard, aio)

static void of_a_drive(void **state)
{
    (void)state;
    EXPECT("ignore", "threads", "-drive", "file=" D ",if=none,id=d");
    EXPECT("unmap", "native", "-drive",
           "file=" D ",cache=none,aio=native,discard=unmap,id=d");
    EXPECT("unmap", "io_uring", "-drive",
           "driver=qcow2,file.driver=file,file.filename=" D
           ",file.aio=io_uring,discard=on");
    EXPECT("ignore", "threads", "-hda", D);
}

static void detect_zeroes(void **state)
{
    char *argv[] = {(char *)(uintptr_t) "qemu", (char *)(uintptr_t) "-drive",
                    (char *)(uintptr_t) "file=" D ",detect-zeroes=unmap", NULL};
    struct vm_disk d = {
        .name = "vda", .attach_path = D, .attach_format = "qcow2"};
    struct session s = {.rec = {.has_launch = true}};

    (void)state;
    s.rec.launch.argv = argv;
    s.rec.launch.cwd = (char *)(uintptr_t) "/";
    assert_string_equal(launch_detect_zeroes(&s, &d), "unmap");
    argv[2] = (char *)(uintptr_t) "file=" D;
    assert_string_equal(launch_detect_zeroes(&s, &d), "off");
    argv[2] = (char *)(uintptr_t) "file=/d/other";
    assert_null(launch_detect_zeroes(&s, &d));
}

static void of_nodes(void **state)
{
    (void)state;
    EXPECT("unmap", "io_uring", "-blockdev",
           "driver=file,filename=" D ",node-name=f,aio=io_uring", "-blockdev",
           "driver=qcow2,file=f,node-name=n,discard=unmap");
    EXPECT("ignore", "native", "-blockdev",
           "{\"driver\":\"qcow2\",\"node-name\":\"n\",\"file\":{\"driver\":"
           "\"file\",\"filename\":\"" D "\",\"aio\":\"native\"}}");
    EXPECT("unmap", "threads", "-blockdev",
           "driver=qcow2,node-name=n,discard=unmap,file.driver=file,"
           "file.filename=" D);
}

static void what_is_not_told_is_not_guessed(void **state)
{
    (void)state;
    EXPECT(NULL, NULL, "-drive", "file=/d/other.qcow2,discard=unmap");
    EXPECT(NULL, NULL, "-drive", "file=" D ",discard=maybe,aio=new");
    EXPECT(NULL, NULL, "-drive", "file=" D, "-drive", "file=" D);
}

int main(int argc, char **argv)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(of_a_drive),
        cmocka_unit_test(detect_zeroes),
        cmocka_unit_test(of_nodes),
        cmocka_unit_test(what_is_not_told_is_not_guessed),
    };

    if (argc > 1)
        cmocka_set_test_filter(argv[1]);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
