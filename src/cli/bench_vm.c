/* SPDX-License-Identifier: MIT */
#include "bench_vm.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "bench_spawn.h"
#include "run.h"

enum {
    SIZE_DEFAULT = 1 << 30,
    DISK_SIZE = 1 << 20,
    PIECE = 1 << 20,
    START_MS = 15000, /* for QEMU to answer, and for its guest to run */
    CALIBRATE_MS = 300,
    SETTLE_MS = 5,
};

void bench_vm_options_read(struct bench_vm_options *o, const struct args *args)
{
    const char *dir = args_text(args, "dir"), *qemu = args_text(args, "qemu");
    uint64_t size = args_number(args, "size");

    o->size = size ? size : SIZE_DEFAULT;
    o->dir = dir ? dir : ".";
    o->qemu = qemu ? qemu : "qemu-system-x86_64";
    o->accel = args_text(args, "accel");
    o->shared = args_flag(args, "shared");
}

static int write_disk(const struct bench_vm *vm, struct qstill_error *err)
{
    char path[PATH_MAX + 8];
    int fd, bad;

    snprintf(path, sizeof(path), "%s/disk", vm->dir);
    fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    bad = fd < 0 ||
          write(fd, guest_boot_sector(), GUEST_SECTOR) != GUEST_SECTOR ||
          ftruncate(fd, DISK_SIZE) < 0;
    if (fd >= 0)
        close(fd);
    if (bad)
        return cli_fail(err, QSTILL_E_FAILED, "writing %s: %s", path,
                        strerror(errno));
    return 0;
}

static int start_qemu(struct bench_vm *vm, const struct bench_vm_options *o,
                      struct qstill_error *err)
{
    char memory[32], object[96], program[PATH_MAX];
    /* Relative names: a socket's path has 107 bytes at most. */
    /* clang-format off */
    const char *argv[] = {
        o->qemu, "-name", "qstill-bench",
        "-machine", "pc,memory-backend=ram0", "-accel", vm->accel,
        "-cpu", "max", "-m", memory, "-object", object,
        "-nodefaults", "-display", "none",
        "-drive", "file=disk,format=raw,if=none,id=d0",
        "-device", "virtio-blk-pci,drive=d0,id=vda,bootindex=0",
        "-qmp", "unix:qmp,server=on,wait=off",
        "-qmp", "unix:qmp2,server=on,wait=off", NULL,
    };
    /* clang-format on */

    snprintf(memory, sizeof(memory), "%lluM",
             (unsigned long long)(vm->size >> 20));
    snprintf(object, sizeof(object), "memory-backend-%s,id=ram0,size=%s%s",
             o->shared ? "memfd" : "ram", memory, o->shared ? ",share=on" : "");
    if (strchr(o->qemu, '/') && realpath(o->qemu, program))
        argv[0] = program;
    if (bench_spawn(argv, vm->dir, "qemu.log", &vm->child, err) < 0)
        return err->code;
    vm->pid = vm->child;
    return 0;
}

static bool has_ended(struct bench_vm *vm)
{
    if (!vm->child || waitpid(vm->child, NULL, WNOHANG) != vm->child)
        return false;
    if (vm->pid == vm->child)
        vm->pid = 0;
    vm->child = 0;
    return true;
}

/* Its last words make the error of a QEMU that did not come up. */
static int explain(struct bench_vm *vm, struct qstill_error *err)
{
    char words[200];

    has_ended(vm);
    if (!vm->pid)
        return cli_fail(err, QSTILL_E_FAILED, "QEMU has ended: %s",
                        bench_last_words(vm->dir, "qemu.log", words));
    return err->code;
}

static int connect_qmp(struct bench_vm *vm, struct qstill_error *err)
{
    double deadline = bench_now_ms() + START_MS;
    char path[PATH_MAX + 8];

    qstill_qmp_close(vm->qmp);
    vm->qmp = NULL;
    snprintf(path, sizeof(path), "%s/qmp2", vm->dir);
    while (qstill_qmp_open(&vm->qmp, path, NULL, err) < 0) {
        if (has_ended(vm) || bench_now_ms() > deadline)
            return explain(vm, err);
        if (run_cancelled(err) < 0)
            return err->code;
        bench_sleep_ms(SETTLE_MS);
    }
    err->code = 0;
    return qstill_qmp_peer_pid(vm->qmp, &vm->pid, err);
}

/* Where guest-physical 0 is. */
static int find_ram(struct bench_vm *vm, struct qstill_error *err)
{
    json_t *ret = NULL;
    const char *text, *at;

    if (qstill_qmp_execute(vm->qmp, "human-monitor-command",
                           json_pack("{s:s}", "command-line", "gpa2hva 0"), 0,
                           &ret, err) < 0)
        return err->code;
    text = json_string_value(ret);
    at = text ? strstr(text, "is 0x") : NULL;
    vm->ram = at ? strtoull(at + 3, NULL, 16) : 0;
    json_decref(ret);
    if (!vm->ram)
        return cli_fail(err, QSTILL_E_FAILED,
                        "QEMU does not say where its guest's RAM is");
    return 0;
}

static int wait_guest(struct bench_vm *vm, struct qstill_error *err)
{
    double deadline = bench_now_ms() + START_MS;
    struct guest_page first, now;

    if (bench_vm_read(vm, &first, err) < 0)
        return err->code;
    do {
        bench_sleep_ms(SETTLE_MS);
        if (run_cancelled(err) < 0)
            return err->code;
        if (bench_vm_read(vm, &now, err) < 0)
            return explain(vm, err);
        /* firmware tests memory: a beat comes with its clock */
        if (now.beat != first.beat && now.tsc[0] != first.tsc[0] &&
            now.beat > GUEST_PAGES)
            return 0;
    } while (bench_now_ms() < deadline);
    return cli_fail(err, QSTILL_E_FAILED, "the guest does not run in %d s",
                    START_MS / 1000);
}

static uint64_t clock_of(const struct guest_page *p)
{
    return (uint64_t)p->tsc[1] << 32 | p->tsc[0];
}

static int calibrate(struct bench_vm *vm, struct qstill_error *err)
{
    struct guest_page a, b;
    double from, to;

    from = bench_now_ms();
    if (bench_vm_read(vm, &a, err) < 0)
        return err->code;
    bench_sleep_ms(CALIBRATE_MS);
    to = bench_now_ms();
    if (bench_vm_read(vm, &b, err) < 0)
        return err->code;
    vm->hz = (double)(clock_of(&b) - clock_of(&a)) * 1e3 / (to - from);
    if (!(vm->hz > 1e6))
        return cli_fail(err, QSTILL_E_FAILED, "the guest's clock stands still");
    return 0;
}

static int fill_ram(struct bench_vm *vm, struct qstill_error *err)
{
    uint64_t seed = 0x9e3779b97f4a7c15u;
    uint64_t end = GUEST_USED_END + vm->size / 2;
    char *piece = malloc(PIECE);
    int r = 0;

    if (!piece)
        return cli_fail(err, QSTILL_E_FAILED, "out of memory");
    for (uint64_t at = GUEST_USED_END; r == 0 && at < end && at < vm->size;
         at += PIECE) {
        struct iovec from = {piece, PIECE};
        struct iovec to = {(void *)(uintptr_t)(vm->ram + at), PIECE};

        bench_fill(piece, PIECE, &seed);
        r = run_cancelled(err);
        if (r == 0 && process_vm_writev(vm->pid, &from, 1, &to, 1, 0) != PIECE)
            r = cli_fail(err, QSTILL_E_PERMISSION,
                         "filling the memory of QEMU: %s", strerror(errno));
    }
    free(piece);
    return r;
}

/* The QEMU of a revert is a child of ours too: it ends with us, however that
 * comes. (cli_launch() detaches it, as a VM that is to live on must be.) Its
 * environment is ours, as that of the one before it was. */
static int launch(void *user, const struct qstill_launch *l, int *pid,
                  struct qstill_error *err)
{
    struct bench_vm *vm = user;

    has_ended(vm);
    if (vm->child)
        return cli_fail(err, QSTILL_E_FAILED, "QEMU runs already");
    if (bench_spawn(l->argv, l->cwd, l->log, &vm->child, err) < 0)
        return err->code;
    *pid = vm->pid = vm->child;
    return 0;
}

static int attach(struct bench_vm *vm, struct qstill_error *err)
{
    struct qstill_store_options so = QSTILL_STORE_OPTIONS_INIT;
    struct qstill_attach_options ao = QSTILL_ATTACH_OPTIONS_INIT;
    char store[PATH_MAX + 8], qmp[PATH_MAX + 8];

    snprintf(store, sizeof(store), "%s/store", vm->dir);
    snprintf(qmp, sizeof(qmp), "%s/qmp", vm->dir);
    so.dir = store;
    ao.qmp = qmp;
    if (qstill_store_open(&vm->store, &so, err) < 0)
        return err->code;
    qstill_store_set_launch(vm->store, launch, vm);
    return qstill_vm_attach(vm->store, BENCH_VM, &ao, err);
}

static void end_qemu(struct bench_vm *vm)
{
    qstill_qmp_close(vm->qmp);
    vm->qmp = NULL;
    if (vm->child) {
        kill(vm->child, SIGKILL);
        waitpid(vm->child, NULL, 0);
    }
    vm->pid = vm->child = 0;
}

static int try_guest(struct bench_vm *vm, const struct bench_vm_options *o,
                     const char *accel, struct qstill_error *err)
{
    vm->accel = accel;
    if (start_qemu(vm, o, err) < 0 || connect_qmp(vm, err) < 0 ||
        find_ram(vm, err) < 0)
        return err->code;
    return wait_guest(vm, err);
}

/* A /dev/kvm that is there need not work: only a guest that runs shows it. */
static int start_guest(struct bench_vm *vm, const struct bench_vm_options *o,
                       struct qstill_error *err)
{
    if (o->accel)
        return try_guest(vm, o, o->accel, err);
    if (access("/dev/kvm", R_OK | W_OK) == 0) {
        if (try_guest(vm, o, "kvm", err) == 0 ||
            err->code == QSTILL_E_CANCELLED)
            return err->code;
        end_qemu(vm);
        memset(err, 0, sizeof(*err));
    }
    return try_guest(vm, o, "tcg", err);
}

int bench_vm_start(struct bench_vm *vm, const struct bench_vm_options *o,
                   struct qstill_error *err)
{
    memset(vm, 0, sizeof(*vm));
    vm->size = o->size / PIECE * PIECE;
    if (!guest_boot_sector())
        return cli_fail(err, QSTILL_E_PRECONDITION,
                        "there is a guest for x86-64 only");
    if (vm->size < 2 * (uint64_t)GUEST_USED_END)
        return cli_fail(err, QSTILL_E_USAGE, "--size: at least %d MiB",
                        2 * GUEST_USED_END >> 20);
    if (bench_folder(o->dir, vm->dir, err) < 0 || write_disk(vm, err) < 0 ||
        start_guest(vm, o, err) < 0 || fill_ram(vm, err) < 0 ||
        calibrate(vm, err) < 0)
        return err->code;
    return attach(vm, err);
}

int bench_vm_again(struct bench_vm *vm, struct qstill_error *err)
{
    has_ended(vm);
    if (connect_qmp(vm, err) < 0 || find_ram(vm, err) < 0)
        return err->code;
    return wait_guest(vm, err);
}

int bench_vm_read(const struct bench_vm *vm, struct guest_page *out,
                  struct qstill_error *err)
{
    return guest_read(vm->pid, vm->ram + GUEST_METER, out, err);
}

int bench_vm_say(struct bench_vm *vm, const char *command, json_t *arguments,
                 struct qstill_error *err)
{
    return qstill_qmp_execute(vm->qmp, command, arguments, 0, NULL, err);
}

static double event_time(const json_t *event)
{
    const json_t *t = json_object_get(event, "timestamp");

    return (double)json_integer_value(json_object_get(t, "seconds")) +
           (double)json_integer_value(json_object_get(t, "microseconds")) / 1e6;
}

void bench_vm_stopped(struct bench_vm *vm, double *from, double *to)
{
    json_t *event = NULL;

    *from = *to = 0;
    /* events that came before an answer are there with it */
    bench_vm_say(vm, "query-status", NULL, NULL);
    while (qstill_qmp_next_event(vm->qmp, QSTILL_QMP_NO_WAIT, &event, NULL) ==
               0 &&
           event) {
        const char *name = json_string_value(json_object_get(event, "event"));

        if (name && strcmp(name, "STOP") == 0)
            *from = event_time(event);
        else if (name && strcmp(name, "RESUME") == 0)
            *to = event_time(event);
        json_decref(event);
        event = NULL;
    }
}

void bench_vm_fini(struct bench_vm *vm)
{
    end_qemu(vm);
    qstill_store_close(vm->store);
    if (vm->dir[0])
        bench_folder_remove(vm->dir);
    memset(vm, 0, sizeof(*vm));
}
