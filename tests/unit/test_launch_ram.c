/* SPDX-License-Identifier: MIT */
/* Saved files as RAM: tables of a recorded command line and the next one. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include <cmocka.h>

#include "../lib/launch_case.h"

struct ram_case {
    const char *why;
    const char *id[2];
    const char *in[LAUNCH_CASE_WORDS];
    const char *out[LAUNCH_CASE_WORDS]; /* or the message */
};

#define FILE_PC                                                                \
    "memory-backend-file,id=pc.ram,size=67108864,mem-path=/s/0.ram,share=off," \
    "x-use-canonical-path-for-ramblock-id=off"

static const struct ram_case ram_cases[] = {
    {"the default RAM gets a backend",
     {"pc.ram"},
     {"q", "-machine", "pc", "-m", "64"},
     {"-machine", "pc", "-m", "64", "-object", FILE_PC, "-machine",
      "memory-backend=pc.ram"}},
    {"-mem-path and -mem-prealloc do not go with a backend",
     {"pc.ram"},
     {"q", "-M", "q35,accel=tcg", "-mem-path", "/dev/hugepages",
      "-mem-prealloc", "-m", "size=64,slots=2,maxmem=1G"},
     {"-M", "q35,accel=tcg", "-m", "size=64,slots=2,maxmem=1G", "-object",
      FILE_PC, "-machine", "memory-backend=pc.ram"}},
    {"a backend keeps its id and its nodes, and loses its type's options",
     {"ram0"},
     {"q", "-object",
      "memory-backend-memfd,id=ram0,size=64M,share=on,hugetlb=on,host-nodes=0-"
      "1,"
      "policy=bind,prealloc=on",
      "-machine", "pc,memory-backend=ram0"},
     {"-object",
      "memory-backend-file,id=ram0,host-nodes=0-1,policy=bind,size=67108864,"
      "mem-path=/s/0.ram,share=off,x-use-canonical-path-for-ramblock-id=off",
      "-machine", "pc,memory-backend=ram0"}},
    {"a block named by its path, and JSON",
     {"/objects/ram0"},
     {"q", "-object",
      "{\"qom-type\":\"memory-backend-ram\",\"id\":\"ram0\",\"size\":1,"
      "\"host-nodes\":[0],\"policy\":\"bind\",\"prealloc\":true}"},
     {"-object",
      "{\"qom-type\":\"memory-backend-file\",\"id\":\"ram0\","
      "\"host-nodes\":[0],\"policy\":\"bind\",\"size\":67108864,\"mem-path\":"
      "\"/s/0.ram\","
      "\"share\":false,\"x-use-canonical-path-for-ramblock-id\":true}"}},
    {"two nodes",
     {"n0", "n1"},
     {"q", "-object", "memory-backend-ram,id=n0,size=64M", "-object",
      "memory-backend-ram,id=n1,size=64M", "-numa", "node,memdev=n0", "-numa",
      "node,memdev=n1"},
     {"-object",
      "memory-backend-file,id=n0,size=67108864,mem-path=/s/0.ram,share=off,"
      "x-use-canonical-path-for-ramblock-id=off",
      "-object",
      "memory-backend-file,id=n1,size=67108864,mem-path=/s/1,,.ram,share=off,"
      "x-use-canonical-path-for-ramblock-id=off",
      "-numa", "node,memdev=n0", "-numa", "node,memdev=n1"}},
};

static const struct ram_case ram_refused[] = {
    {"hot-plugged",
     {"dimm0"},
     {"q", "-m", "64"},
     {"RAM block dimm0 is no memory backend of the command line of QEMU"}},
    {"two default blocks",
     {"pc.ram", "mach-virt.ram"},
     {"q"},
     {"RAM block mach-virt.ram is no memory backend of the command line of "
      "QEMU"}},
    {"the backend is elsewhere",
     {"pc.ram"},
     {"q", "-machine", "pc,memory-backend=pc.ram"},
     {"RAM block pc.ram is no memory backend of the command line of QEMU"}},
    {"a configuration file may have it",
     {"pc.ram"},
     {"q", "-readconfig", "x"},
     {"RAM block pc.ram is no memory backend of the command line of QEMU"}},
    {"balloon",
     {"pc.ram"},
     {"q", "-device", "virtio-balloon-pci,id=b"},
     {"RAM cannot be mapped from files: -device virtio-balloon-pci,id=b would "
      "punch holes into the saved RAM"}},
    {"vhost-user",
     {"pc.ram"},
     {"q", "-netdev", "vhost-user,id=n,chardev=c"},
     {"RAM cannot be mapped from files: -netdev vhost-user,id=n,chardev=c "
      "shares the RAM with another process"}},
    {"two of one id",
     {"r"},
     {"q", "-object", "memory-backend-ram,id=r,size=1", "-object",
      "memory-backend-ram,id=r,size=1"},
     {"two memory backends are named r"}},
};

static int build_ram(const struct ram_case *c, char ***argv,
                     struct qstill_error *err)
{
    struct launch_record rec = launch_case_record(c->in);
    struct launch_ram ram[] = {
        {c->id[0], 64 << 20, "/s/0.ram"},
        {c->id[1], 64 << 20, "/s/1,.ram"},
    };
    struct launch_change change = {.mapped = ram,
                                   .mapped_count = c->id[1] ? 2 : 1};

    return launch_build(&rec, &change, argv, err);
}

static void saved_files_become_the_ram(void **state)
{
    size_t i;

    (void)state;
    for (i = 0; i < sizeof(ram_cases) / sizeof(ram_cases[0]); i++) {
        struct qstill_error err = {0};
        char **argv = NULL;

        if (build_ram(&ram_cases[i], &argv, &err) < 0)
            fail_msg("%s: %s", ram_cases[i].why, err.message);
        launch_case_assert(ram_cases[i].why, argv + 1, ram_cases[i].out);
        launch_argv_free(argv);
    }
}

static void ram_that_cannot_be_mapped_is_refused(void **state)
{
    size_t i;

    (void)state;
    for (i = 0; i < sizeof(ram_refused) / sizeof(ram_refused[0]); i++) {
        struct qstill_error err = {0};
        char **argv = NULL;

        assert_int_equal(build_ram(&ram_refused[i], &argv, &err),
                         QSTILL_E_PRECONDITION);
        assert_string_equal(err.message, ram_refused[i].out[0]);
        assert_null(argv);
    }
}

/* A file that is open read-only cannot get holes. */
static void read_only_files_allow_a_balloon(void **state)
{
    static const char *const in[] = {"q", "-device", "virtio-balloon-pci",
                                     NULL};
    static const char *const out[] = {
        "-device",
        "virtio-balloon-pci",
        "-object",
        "memory-backend-file,id=pc.ram,size=4096,mem-path=/s,share=off,"
        "readonly=on,rom=off,x-use-canonical-path-for-ramblock-id=off",
        "-machine",
        "memory-backend=pc.ram",
        NULL};
    static const char *const virtio_mem[] = {"q", "-device", "virtio-mem-pci",
                                             NULL};
    struct launch_record rec = launch_case_record(in);
    struct launch_ram ram = {"pc.ram", 4096, "/s"};
    struct launch_change change = {
        .mapped = &ram, .mapped_count = 1, .mapped_readonly = true};
    struct qstill_error err = {0};
    char **argv = NULL;

    (void)state;
    assert_int_equal(launch_build(&rec, &change, &argv, &err), 0);
    launch_case_assert("read-only", argv + 1, out);
    launch_argv_free(argv);
    rec = launch_case_record(virtio_mem);
    assert_int_equal(launch_build(&rec, &change, &argv, &err),
                     QSTILL_E_PRECONDITION);
    assert_string_equal(err.message,
                        "RAM cannot be mapped from files: -device "
                        "virtio-mem-pci would punch holes into the saved RAM");
}

/* Recorded from a VM that a revert had started: what it maps may be deleted. */
static void ram_mapped_from_a_snapshot_becomes_ordinary_again(void **state)
{
    static const char *const in[] = {
        "q",
        "-object",
        "memory-backend-file,id=pc.ram,size=4096,"
        "mem-path=/s/vm/snapshots/1/memory/pc.ram.ram,share=off,readonly=on,"
        "rom=off,x-use-canonical-path-for-ramblock-id=off",
        "-machine",
        "memory-backend=pc.ram",
        "-object",
        "memory-backend-file,id=m,size=4096,mem-path=/dev/hugepages,share=off",
        "-S",
        "-incoming",
        "defer",
        NULL};
    static const char *const out[] = {
        "-object",
        "memory-backend-ram,id=pc.ram,size=4096,"
        "x-use-canonical-path-for-ramblock-id=off",
        "-machine",
        "memory-backend=pc.ram",
        "-object",
        "memory-backend-file,id=m,size=4096,mem-path=/dev/hugepages,share=off",
        NULL};
    struct launch_record rec = launch_case_record(in);
    struct launch_change change = {0};
    struct qstill_error err = {0};
    char **argv = NULL;

    (void)state;
    assert_int_equal(launch_build(&rec, &change, &argv, &err), 0);
    launch_case_assert("unmapped", argv + 1, out);
    launch_argv_free(argv);
}

/* .out: the block that the command line does not make; none: it passes */
static const struct ram_case made_cases[] = {
    {"the default RAM", {"pc.ram"}, {"q", "-m", "64"}, {NULL}},
    {"plugged beside it", {"pc.ram", "d0"}, {"q", "-m", "64"}, {"d0"}},
    {"on the command line",
     {"d0", "pc.ram"},
     {"q", "-object", "memory-backend-ram,id=d0,size=64M", "-device",
      "pc-dimm,memdev=d0"},
     {NULL}},
    {"by its path, in JSON",
     {"/objects/m0"},
     {"q", "-object",
      "{\"qom-type\":\"memory-backend-ram\",\"id\":\"m0\",\"size\":1}",
      "-machine", "memory-backend=m0"},
     {NULL}},
    {"plugged beside RAM of a backend",
     {"m0", "/objects/d0"},
     {"q", "-object", "memory-backend-ram,id=m0,size=64M", "-numa",
      "node,memdev=m0"},
     {"/objects/d0"}},
    {"the default RAM, where there is none now",
     {"pc.ram"},
     {"q", "-object", "memory-backend-ram,id=m0,size=64M", "-machine",
      "memory-backend=m0"},
     {"pc.ram"}},
    {"a backend whose device was plugged in",
     {"pc.ram", "d0"},
     {"q", "-object", "memory-backend-ram,id=d0,size=64M", "-device",
      "virtio-net-pci,id=d0"},
     {"d0"}},
    {"a backend of a device in JSON",
     {"pc.ram", "d0"},
     {"q", "-object", "memory-backend-ram,id=d0,size=64M", "-device",
      "{\"driver\":\"pc-dimm\",\"memdev\":\"d0\"}"},
     {NULL}},
    {"a backend that is given to its device apart",
     {"pc.ram", "d0"},
     {"q", "-object", "memory-backend-ram,id=d0,size=64M", "-set",
      "device.dimm0.memdev=d0"},
     {NULL}},
    {"an object that is no memory",
     {"pc.ram", "d0"},
     {"q", "-object", "iothread,id=d0"},
     {"d0"}},
    {"the default RAM of a machine that is not known",
     {"board.ram"},
     {"q", "-m", "64"},
     {NULL}},
    {"a file of options may make it",
     {"pc.ram", "d0"},
     {"q", "-readconfig", "/etc/vm.cfg"},
     {NULL}},
};

static void ram_that_no_start_makes_is_named(void **state)
{
    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(made_cases); i++) {
        const struct ram_case *c = &made_cases[i];
        struct launch_record rec = launch_case_record(c->in);
        struct qstill_error err = {0};
        char says[64];
        int r = launch_check_ram(&rec, c->id, c->id[1] ? 2 : 1, &err);

        if (!c->out[0]) {
            if (r != 0)
                fail_msg("%s: %s", c->why, err.message);
            continue;
        }
        snprintf(says, sizeof(says), "RAM block %s ", c->out[0]);
        if (r != QSTILL_E_PRECONDITION || !strstr(err.message, says))
            fail_msg("%s: %d, %s", c->why, r, err.message);
    }
}

static void a_backend_is_read_only_unless_its_ram_is_not(void **state)
{
    static const struct {
        const char *object;
        bool is;
    } cases[] = {
        {"memory-backend-file,id=n0,size=1M,mem-path=/f,readonly=on", true},
        {"memory-backend-file,id=n0,size=1M,mem-path=/f", false},
        {"memory-backend-file,id=n0,size=1M,mem-path=/f,readonly=off", false},
        {"memory-backend-file,id=n0,mem-path=/f,readonly=on,rom=off", false},
        {"memory-backend-file,id=n1,mem-path=/f,readonly=on", false},
        {"{\"qom-type\":\"memory-backend-file\",\"id\":\"n0\","
         "\"readonly\":true}",
         true},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        const char *argv[] = {"q", "-object", cases[i].object, NULL};
        struct launch_record rec = launch_case_record(argv);

        if (launch_ram_is_readonly(&rec, "/objects/n0") != cases[i].is)
            fail_msg("%s", cases[i].object);
    }
}

static void an_nvdimm_of_a_shared_file_is_kept(void **state)
{
    static const struct {
        const char *object, *device;
        bool is;
    } cases[] = {
        {"memory-backend-file,id=n0,share=on,mem-path=/f",
         "nvdimm,id=d,memdev=n0", true},
        {"memory-backend-file,id=n0,share=on,mem-path=/f",
         "{\"driver\":\"nvdimm\",\"memdev\":\"/objects/n0\"}", true},
        {"memory-backend-file,id=n0,mem-path=/f", "nvdimm,memdev=n0", false},
        {"memory-backend-ram,id=n0,share=on", "nvdimm,memdev=n0", false},
        {"memory-backend-file,id=n0,share=on,mem-path=/f", "pc-dimm,memdev=n0",
         false},
        {"memory-backend-file,id=n0,share=on,mem-path=/f", "nvdimm,memdev=n1",
         false},
    };

    (void)state;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        const char *argv[] = {"q",       "-object",       cases[i].object,
                              "-device", cases[i].device, NULL};
        struct launch_record rec = launch_case_record(argv);

        if (launch_ram_is_kept(&rec, "/objects/n0") != cases[i].is)
            fail_msg("%s %s", cases[i].object, cases[i].device);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(saved_files_become_the_ram),
        cmocka_unit_test(ram_that_cannot_be_mapped_is_refused),
        cmocka_unit_test(read_only_files_allow_a_balloon),
        cmocka_unit_test(ram_mapped_from_a_snapshot_becomes_ordinary_again),
        cmocka_unit_test(ram_that_no_start_makes_is_named),
        cmocka_unit_test(a_backend_is_read_only_unless_its_ram_is_not),
        cmocka_unit_test(an_nvdimm_of_a_shared_file_is_kept),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
