/* SPDX-License-Identifier: MIT */
/* A QEMU of our own with the guest of bench_guest.h, in a folder of its own,
 * and a store for its snapshots beside it. */
#ifndef QSTILL_CLI_BENCH_VM_H
#define QSTILL_CLI_BENCH_VM_H

#include <limits.h>

#include "args.h"
#include "bench_guest.h"
#include "qstill-qmp.h"

#define BENCH_VM "bench"

struct bench_vm {
    char dir[PATH_MAX];         /* "" before it is made */
    struct qstill_store *store; /* DIR/store; BENCH_VM is attached */
    struct qstill_qmp *qmp;     /* a monitor of our own */
    const char *accel;          /* "kvm" or "tcg" */
    pid_t child;                /* the QEMU; 0 when it is reaped */
    pid_t pid;                  /* the same, as its monitor tells it */
    uint64_t ram;               /* where its RAM begins in that process */
    uint64_t size;
    double hz; /* of the guest's clock */
};

struct bench_vm_options {
    const char *qemu;  /* the program */
    const char *accel; /* "kvm" or "tcg"; NULL: KVM where it works */
    const char *dir;   /* where the folder is made */
    uint64_t size;     /* of the RAM; half of it is filled with random data */
    bool shared;       /* RAM that another process could map */
};

/* The options of the benchmarks that start a VM, and their reading. */
#define BENCH_VM_OPTIONS                                                       \
    {"size", "SIZE", OPTION_SIZE, false, "of the VM's RAM (default: 1G)"},     \
        {"reps", "N", OPTION_NUMBER, false,                                    \
         "of each measurement (default: 3)"},                                  \
        {"dir", "DIR", OPTION_FILE, false,                                     \
         "where the files go, and go away (default: here)"},                   \
        {"qemu", "FILE", OPTION_FILE, false,                                   \
         "the QEMU (default: qemu-system-x86_64)"},                            \
        {"accel", "kvm|tcg", OPTION_CHOICE, false,                             \
         "how the VM runs (default: kvm where it works)"},                     \
    {                                                                          \
        "shared", NULL, OPTION_FLAG, false, "with the VM's RAM in a memfd"     \
    }
void bench_vm_options_read(struct bench_vm_options *o, const struct args *args);

/* Makes the folder, starts QEMU, fills its RAM, waits for the guest, attaches.
 * What it has made goes with bench_vm_fini(), on failure too. */
int bench_vm_start(struct bench_vm *vm, const struct bench_vm_options *o,
                   struct qstill_error *err);
void bench_vm_fini(struct bench_vm *vm);

/* After a revert, which may have brought another QEMU: connects anew, and
 * fails when the guest does not run. */
int bench_vm_again(struct bench_vm *vm, struct qstill_error *err);

int bench_vm_read(const struct bench_vm *vm, struct guest_page *out,
                  struct qstill_error *err);

/* A command without an interesting answer. */
int bench_vm_say(struct bench_vm *vm, const char *command, json_t *arguments,
                 struct qstill_error *err);
/* When the VM was stopped and went on last, since the last call, in seconds of
 * the epoch; zeros when it was not. */
void bench_vm_stopped(struct bench_vm *vm, double *from, double *to);

/* ----------------------------------------------------------- small things */

double bench_now_ms(void);
void bench_sleep_ms(unsigned ms);
/* Runs a program (found by PATH) in `cwd` to its end, its words to a file;
 * fails with its last words. NOT_FOUND when there is no such program. */
int bench_run(const char *const *argv, const char *cwd,
              struct qstill_error *err);
/* Fresh folder below `dir`, and its end with all that is in it. */
int bench_folder(const char *dir, char out[PATH_MAX], struct qstill_error *err);
void bench_folder_remove(const char *path);
void bench_fill(void *p, size_t length, uint64_t *seed); /* random bytes */

#endif
