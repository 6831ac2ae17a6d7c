/* SPDX-License-Identifier: MIT */
/*
 * A recorded command line, its words ended by NUL, is whatever a process wrote
 * there. A line that is built has the new image at one place, and built again
 * without a change it stays as it is.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "engine/launch.h"

#define CHECK(x)                                                               \
    do {                                                                       \
        if (!(x))                                                              \
            abort();                                                           \
    } while (0)

enum { WORDS_MAX = 256 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void argv_freep(char ***argv)
{
    launch_argv_free(*argv);
}

static bool equal(char *const *a, char *const *b)
{
    for (; *a && *b; a++, b++)
        if (strcmp(*a, *b) != 0)
            return false;
    return !*a && !*b;
}

static void check_again(struct launch_record rec, char **argv)
{
    CLEANUP(argv_freep) char **again = NULL;
    struct launch_disk disk = {"d", "/h/1.qcow2", "qcow2", "/h/1.qcow2",
                               "qcow2"};
    struct launch_change change = {.disks = &disk, .disk_count = 1};
    struct qstill_error err = {0};

    rec.argv = argv;
    CHECK(launch_build(&rec, &change, &again, &err) == 0);
    CHECK(equal(argv, again));
}

static void try_build(const struct launch_record *rec, const char *format)
{
    CLEANUP(argv_freep) char **argv = NULL;
    CLEANUP(argv_freep) char **mapped = NULL;
    struct launch_disk disk = {"d", "/d.img", format, "/h/1.qcow2", "qcow2"};
    struct launch_ram ram[] = {{"pc.ram", 4096, "/r"}, {"m", 4096, "/m"}};
    struct launch_change change = {.disks = &disk, .disk_count = 1};
    struct qstill_error err = {0};

    if (launch_build(rec, &change, &argv, &err) == 0)
        check_again(*rec, argv);
    else
        CHECK(err.code == QSTILL_E_PRECONDITION && err.message[0]);
    change = (struct launch_change){
        .mapped = ram, .mapped_count = 2, .incoming = "defer"};
    if (launch_build(rec, &change, &mapped, &err) < 0)
        CHECK(err.code == QSTILL_E_PRECONDITION && err.message[0]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    CLEANUP(freep) char *text = malloc(size + 1);
    char *argv[WORDS_MAX + 1] = {NULL}, *env[] = {NULL};
    struct launch_record rec = {
        .argv = argv, .cwd = (char *)"/", .env = env, .exe = (char *)"/bin/sh"};
    struct launch_disk disk = {"d", "/d.img", "raw", NULL, NULL};
    struct launch_hinder_list list = {0};
    struct qstill_error err = {0};
    size_t i, n = 0;

    memcpy(text, data, size);
    text[size] = '\0';
    for (i = 0; i <= size && n < WORDS_MAX; i += strlen(text + i) + 1)
        argv[n++] = text + i;
    try_build(&rec, "raw");
    try_build(&rec, "qcow2");
    CHECK(launch_hinders(&rec, &disk, 1, getpid(), &list, &err) == 0);
    for (i = 0; i < list.count; i++)
        CHECK(list.items[i].code && list.items[i].message[0]);
    launch_hinder_list_fini(&list);
    return 0;
}
