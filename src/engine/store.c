/* SPDX-License-Identifier: MIT */
#include "store.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "base/buf.h"
#include "base/options.h"
#include "base/publish.h"
#include "name.h"

#define DIR_FLAGS (O_RDONLY | O_DIRECTORY | O_CLOEXEC)

static char *default_dir(void)
{
    CLEANUP(buf_fini) struct buf b = BUF_INIT;
    const char *env = getenv("QSTILL_STORE");
    const char *state = getenv("XDG_STATE_HOME");
    const char *home = getenv("HOME");

    if (env && *env)
        return strdup(env);
    if (geteuid() == 0)
        return strdup("/var/lib/qstill");
    if (state && *state == '/')
        buf_printf(&b, "%s/qstill", state);
    else
        buf_printf(&b, "%s/.local/state/qstill", home ? home : "");
    return buf_take_string(&b);
}

/* The store may be elsewhere; what is inside it may not. */
static int follow(struct qstill_store *store, struct qstill_error *err)
{
    struct stat st;
    char *real;

    if (lstat(store->dir, &st) < 0 || !S_ISLNK(st.st_mode))
        return 0;
    real = realpath(store->dir, NULL);
    if (!real)
        return err_errno(err, errno, "store %s, a symbolic link", store->dir);
    free(store->dir);
    store->dir = real;
    return 0;
}

QSTILL_PUBLIC int qstill_store_open(struct qstill_store **out,
                                    const struct qstill_store_options *options,
                                    struct qstill_error *caller_err)
{
    struct qstill_error scratch, *err = err_door(caller_err, &scratch);
    struct qstill_store_options o;
    struct qstill_store *store;
    const char *dir;
    struct stat st;

    if (options_take(&o, sizeof(o), options, "store", err) < 0)
        return err->code;
    dir = o.dir;
    if (dir && !*dir)
        return err_set(err, QSTILL_E_USAGE, "the store's name is empty");
    store = calloc(1, sizeof(*store));
    if (store)
        store->dir = dir ? strdup(dir) : default_dir();
    if (!store || !store->dir) {
        free(store);
        return err_nomem(err);
    }
    if (follow(store, err) < 0) {
        qstill_store_close(store);
        return err->code;
    }
    if (lstat(store->dir, &st) == 0 && !S_ISDIR(st.st_mode)) {
        err_set(err, QSTILL_E_PRECONDITION, "store %s is no directory",
                store->dir);
        qstill_store_close(store);
        return err->code;
    }
    *out = store;
    return 0;
}

QSTILL_PUBLIC void qstill_store_close(struct qstill_store *store)
{
    if (!store)
        return;
    free(store->dir);
    free(store);
}

QSTILL_PUBLIC void qstill_store_set_note(struct qstill_store *store,
                                         qstill_note_fn *fn, void *user)
{
    store->note = fn;
    store->note_user = user;
}

QSTILL_PUBLIC void qstill_store_set_launch(struct qstill_store *store,
                                           qstill_launch_fn *fn, void *user)
{
    store->launch = fn;
    store->launch_user = user;
}

void store_note(const struct qstill_store *store, const char *fmt, ...)
{
    char text[600];
    va_list ap;

    if (!store->note)
        return;
    va_start(ap, fmt);
    vsnprintf(text, sizeof(text), fmt, ap);
    va_end(ap);
    store->note(store->note_user, text);
}

int store_opendirat(int dirfd, const char *name, int *out,
                    struct qstill_error *err)
{
    int fd = openat(dirfd, name, DIR_FLAGS | O_NOFOLLOW);

    if (fd < 0 && (errno == ELOOP || errno == ENOTDIR))
        return err_set(err, QSTILL_E_PRECONDITION,
                       "%s is no directory (symbolic links are not followed)",
                       name);
    if (fd < 0)
        return err_errno(err, errno, "cannot open directory %s", name);
    *out = fd;
    return 0;
}

int store_mkdirat(int dirfd, const char *name, struct qstill_error *err)
{
    if (mkdirat(dirfd, name, 0700) < 0)
        return err_errno(err, errno, "cannot make directory %s", name);
    return publish_sync_dir(dirfd, err);
}

int store_open_dir(const struct qstill_store *store, int *dirfd,
                   struct qstill_error *err)
{
    return store_opendirat(AT_FDCWD, store->dir, dirfd, err);
}

/* Makes every missing directory of a path, as mkdir -p does. */
static int make_parents(const char *path, struct qstill_error *err)
{
    CLEANUP(freep) char *copy = strdup(path);

    if (!copy)
        return err_nomem(err);
    for (char *p = copy + 1; *p; p++) {
        if (*p != '/')
            continue;
        *p = '\0';
        if (mkdir(copy, 0755) < 0 && errno != EEXIST)
            return err_errno(err, errno, "cannot make directory %s", copy);
        *p = '/';
    }
    if (mkdir(copy, 0700) < 0 && errno != EEXIST)
        return err_errno(err, errno, "cannot make store %s", copy);
    return 0;
}

static int mkdir_if_missing(int dirfd, const char *name,
                            struct qstill_error *err)
{
    if (mkdirat(dirfd, name, 0700) == 0)
        return publish_sync_dir(dirfd, err);
    if (errno != EEXIST)
        return err_errno(err, errno, "cannot make directory %s", name);
    return 0;
}

int store_make_vm(const struct qstill_store *store, const char *vm, int *dirfd,
                  struct qstill_error *err)
{
    CLEANUP(closep) int top = -1, vmfd = -1;

    if (name_check("VM name", vm, err) < 0 || make_parents(store->dir, err) < 0)
        return err->code;
    if (store_open_dir(store, &top, err) < 0 ||
        mkdir_if_missing(top, vm, err) < 0 ||
        store_opendirat(top, vm, &vmfd, err) < 0 ||
        mkdir_if_missing(vmfd, STORE_SNAPSHOTS, err) < 0)
        return err_wrap(err, "store %s", store->dir);
    *dirfd = take_fd(&vmfd);
    return 0;
}

int store_open_vm(const struct qstill_store *store, const char *vm, int *dirfd,
                  struct qstill_error *err)
{
    CLEANUP(closep) int top = -1, vmfd = -1;
    int r;

    if (name_check("VM name", vm, err) < 0)
        return err->code;
    r = store_open_dir(store, &top, err);
    if (r == 0)
        r = store_opendirat(top, vm, &vmfd, err);
    if (r == 0 && faccessat(vmfd, STORE_RECORD, F_OK, AT_SYMLINK_NOFOLLOW) < 0)
        r = err_errno(err, errno, "%s/%s", vm, STORE_RECORD);
    if (r == QSTILL_E_NOT_FOUND) {
        err_set(err, r, "no VM named %s in store %s", vm, store->dir);
        return err_hint(err,
                        "qstill vms lists them; qstill attach %s --qmp "
                        "SOCK makes one known",
                        vm);
    }
    if (r < 0)
        return err_wrap(err, "store %s", store->dir);
    *dirfd = take_fd(&vmfd);
    return 0;
}

bool store_is_vm(int storefd, const char *name)
{
    char record[NAME_MAX + sizeof(STORE_RECORD) + 1];

    snprintf(record, sizeof(record), "%s/%s", name, STORE_RECORD);
    return name[0] != '.' && faccessat(storefd, record, F_OK, 0) == 0;
}

int store_open_snapshots(int vmfd, int *dirfd, struct qstill_error *err)
{
    return store_opendirat(vmfd, STORE_SNAPSHOTS, dirfd, err);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int add_name(char ***names, size_t *count, const char *name)
{
    char **more = realloc(*names, (*count + 1) * sizeof(*more));

    if (!more)
        return -1;
    *names = more;
    more[*count] = strdup(name);
    if (!more[*count])
        return -1;
    (*count)++;
    return 0;
}

static int read_names(DIR *dir, char ***names, size_t *count,
                      struct qstill_error *err)
{
    struct dirent *e;

    while ((e = readdir(dir)) != NULL) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        if (*count >= STORE_NAMES_MAX)
            return err_set(err, QSTILL_E_CORRUPT,
                           "a directory of the store has over %d entries",
                           STORE_NAMES_MAX);
        if (add_name(names, count, e->d_name) < 0)
            return err_nomem(err);
    }
    return 0;
}

int store_names(int dirfd, char ***out, size_t *out_count,
                struct qstill_error *err)
{
    int fd = openat(dirfd, ".", DIR_FLAGS);
    DIR *dir = fd < 0 ? NULL : fdopendir(fd);
    char **names = NULL;
    size_t count = 0;
    int r;

    if (!dir) {
        err_errno(err, errno, "cannot read a directory of the store");
        if (fd >= 0)
            close(fd);
        return err->code;
    }
    r = read_names(dir, &names, &count, err);
    closedir(dir);
    if (r < 0) {
        store_names_free(names, count);
        return r;
    }
    if (count > 1)
        qsort(names, count, sizeof(*names), by_name);
    *out = names;
    *out_count = count;
    return 0;
}

void store_names_free(char **names, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(names[i]);
    free(names);
}

/* Calls visit for each entry below dirfd/name; two levels are all we make. */
static int each_below(int dirfd, const char *name, int depth,
                      int (*visit)(int fd, const char *entry, void *user,
                                   struct qstill_error *err),
                      void *user, struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;
    char **names = NULL;
    size_t count = 0;
    struct stat st;
    int r = 0;

    if (store_opendirat(dirfd, name, &fd, err) < 0 ||
        store_names(fd, &names, &count, err) < 0)
        return err->code;
    for (size_t i = 0; i < count && r == 0; i++) {
        if (depth > 0 && fstatat(fd, names[i], &st, AT_SYMLINK_NOFOLLOW) == 0 &&
            S_ISDIR(st.st_mode))
            r = each_below(fd, names[i], depth - 1, visit, user, err);
        if (r == 0)
            r = visit(fd, names[i], user, err);
    }
    store_names_free(names, count);
    return r;
}

static int remove_one(int fd, const char *entry, void *user,
                      struct qstill_error *err)
{
    (void)user;
    if (unlinkat(fd, entry, 0) < 0 && errno != ENOENT &&
        unlinkat(fd, entry, AT_REMOVEDIR) < 0 && errno != ENOENT)
        return err_errno(err, errno, "cannot remove %s", entry);
    return 0;
}

int store_remove_tree(int dirfd, const char *name, struct qstill_error *err)
{
    struct stat st;
    bool is_dir;

    if (fstatat(dirfd, name, &st, AT_SYMLINK_NOFOLLOW) < 0)
        return errno == ENOENT ? 0
                               : err_errno(err, errno, "cannot stat %s", name);
    is_dir = S_ISDIR(st.st_mode);
    if (is_dir && each_below(dirfd, name, 1, remove_one, NULL, err) < 0)
        return err_wrap(err, "%s", name);
    /* somebody else's link, which a damaged snapshot may be, goes itself */
    if (unlinkat(dirfd, name, is_dir ? AT_REMOVEDIR : 0) < 0 && errno != ENOENT)
        return err_errno(err, errno, "cannot remove %s", name);
    return publish_sync_dir(dirfd, err);
}

void store_sweep(int dirfd)
{
    struct qstill_error ignored = {0};
    char **names = NULL;
    size_t count = 0;

    if (store_names(dirfd, &names, &count, &ignored) < 0)
        return;
    for (size_t i = 0; i < count; i++)
        if (publish_is_aside(names[i]))
            unlinkat(dirfd, names[i], 0);
    store_names_free(names, count);
}

static int add_usage(int fd, const char *entry, void *user,
                     struct qstill_error *err)
{
    uint64_t *sum = user;
    struct stat st;

    (void)err;
    if (fstatat(fd, entry, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
        S_ISREG(st.st_mode))
        *sum += (uint64_t)st.st_blocks * 512;
    return 0;
}

uint64_t store_tree_usage(int dirfd, const char *name)
{
    struct qstill_error scratch;
    uint64_t sum = 0;

    each_below(dirfd, name, 1, add_usage, &sum, err_door(NULL, &scratch));
    return sum;
}
