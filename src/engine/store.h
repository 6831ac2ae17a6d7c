/* SPDX-License-Identifier: MIT */
/*
 * The store's directories (docs/FORMATS.md): STORE/VM/{vm.json,lock,
 * journal.json,snapshots/ID/}. Everything is opened relative to directory fds
 * and without following symbolic links.
 */
#ifndef QSTILL_ENGINE_STORE_H
#define QSTILL_ENGINE_STORE_H

#include "base/error.h"

struct qstill_store {
    char *dir;
    qstill_note_fn *note;
    void *note_user;
    qstill_launch_fn *launch;
    void *launch_user;
};

#define STORE_SNAPSHOTS "snapshots"
#define STORE_RECORD    "vm.json"
#define STORE_JOURNAL   "journal.json"
#define STORE_LOCK      "lock"
#define STORE_MANIFEST  "manifest.json"
#define STORE_MEMORY    "memory"
#define STORE_QEMU_LOG  "qemu.log"
/* What a launcher was last asked to start ("?") or has started ("="), and the
 * words of that command line; each ends with a NUL. */
#define STORE_ASKED ".asked"

/* Opens STORE (NOT_FOUND when there is none yet). */
int store_open_dir(const struct qstill_store *store, int *dirfd,
                   struct qstill_error *err);
/* Makes STORE, its parents and STORE/VM/snapshots; VM may exist already. */
int store_make_vm(const struct qstill_store *store, const char *vm, int *dirfd,
                  struct qstill_error *err);
/* Opens STORE/VM; NOT_FOUND "no VM named ..." when vm.json is not there. */
int store_open_vm(const struct qstill_store *store, const char *vm, int *dirfd,
                  struct qstill_error *err);
/* Whether the name in the store's directory is a VM's. Also one behind a
 * symbolic link, which no verb follows: it is named, as damaged. */
bool store_is_vm(int storefd, const char *name);
int store_open_snapshots(int vmfd, int *dirfd, struct qstill_error *err);
/* openat(O_DIRECTORY | O_NOFOLLOW). */
int store_opendirat(int dirfd, const char *name, int *out,
                    struct qstill_error *err);
/* mkdirat(0700); one that exists is BUSY. */
int store_mkdirat(int dirfd, const char *name, struct qstill_error *err);

/* Names in a directory, sorted, without "." and ".."; free with
 * store_names_free(). More than STORE_NAMES_MAX are CORRUPT. */
#define STORE_NAMES_MAX 65536
int store_names(int dirfd, char ***names, size_t *count,
                struct qstill_error *err);
void store_names_free(char **names, size_t count);

/* Removes dirfd/name with the files and one level of folders in it (memory/);
 * gone already is fine. */
int store_remove_tree(int dirfd, const char *name, struct qstill_error *err);

/* Removes the files that a publish (base/publish.h) which was killed left in
 * a directory; the caller holds the VM's lock. */
void store_sweep(int dirfd);

/* Sum of the disk blocks (bytes) of the files below dirfd/name. */
uint64_t store_tree_usage(int dirfd, const char *name);

/* Tells the caller's note function, if there is one. */
void store_note(const struct qstill_store *store, const char *fmt, ...)
    PRINTF_LIKE(2, 3);

#endif
