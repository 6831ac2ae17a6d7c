/* SPDX-License-Identifier: MIT */
#include "reach.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "launch_opts.h"
#include "layer_file.h"
#include "qcow2/chain.h"

/* No disk has more images; then it is a loop. */
#define CHAIN_MAX 4096

void reach_init(struct reach *r, uint32_t uid, uint32_t gid)
{
    struct passwd pw, *found = NULL;
    char text[4096];

    *r = (struct reach){.uid = uid, .gid = gid, .group_count = 1};
    r->groups[0] = gid;
    r->other = geteuid() == 0 && uid != 0;
    if (!r->other || getpwuid_r(uid, &pw, text, sizeof(text), &found) != 0 ||
        !found)
        return;
    r->group_count = REACH_GROUPS_MAX;
    if (getgrouplist(pw.pw_name, gid, r->groups, &r->group_count) < 0)
        r->group_count = REACH_GROUPS_MAX; /* these it has filled in */
}

/* ------------------------------------------------------------------- as whom
 */

/* Of this thread alone: the kernel's own calls, which the C library's would
 * make in all threads. */
struct disguise {
    bool on;
    int group_count;
    gid_t groups[REACH_GROUPS_MAX];
};

static int put_on(const struct reach *r, struct disguise *d,
                  struct qstill_error *err)
{
    *d = (struct disguise){0};
    if (!r->other)
        return 0;
    d->group_count = getgroups(REACH_GROUPS_MAX, d->groups);
    if (d->group_count < 0)
        return 0; /* more than could be given back: root's look must do */
    if (syscall(SYS_setgroups, r->group_count, r->groups) < 0)
        return err_errno(err, errno, "cannot take QEMU's groups");
    setfsgid(r->gid);
    setfsuid(r->uid); /* and root's capabilities for files are gone */
    d->on = true;
    return 0;
}

static void take_off(struct disguise *d)
{
    if (!d->on)
        return;
    setfsuid(geteuid());
    setfsgid(getegid());
    /* cannot fail: these were ours */
    (void)syscall(SYS_setgroups, d->group_count, d->groups);
}

/* --------------------------------------------------------------------- files
 */

static int look(const char *path, enum reach_kind kind,
                struct qstill_error *err)
{
    int how = kind == REACH_PROGRAM ? X_OK : R_OK;
    struct stat st;

    if (kind == REACH_DIRECTORY)
        how = R_OK | X_OK;
    if (stat(path, &st) < 0 || faccessat(AT_FDCWD, path, how, AT_EACCESS) < 0) {
        if (errno == ENOENT || errno == ENOTDIR)
            return err_set(err, QSTILL_E_NOT_FOUND, "%s is gone", path);
        return err_set(err, QSTILL_E_PERMISSION,
                       "%s cannot be opened by the user of QEMU: %s", path,
                       strerror(errno));
    }
    if (S_ISDIR(st.st_mode) != (kind == REACH_DIRECTORY))
        return err_set(err, QSTILL_E_PRECONDITION, "%s is %s", path,
                       S_ISDIR(st.st_mode) ? "a directory" : "no directory");
    return 0;
}

int reach_file(const struct reach *r, const char *path, enum reach_kind kind,
               struct qstill_error *err)
{
    struct disguise d;
    int rc;

    if (put_on(r, &d, err) < 0)
        return err->code;
    rc = look(path, kind, err);
    take_off(&d);
    return rc;
}

/* -------------------------------------------------------------------- chains
 */

/* As QEMU does. Devices are not read: that of a running VM may be slow, or a
 * tape. */
static bool is_qcow2(const char *path)
{
    CLEANUP(closep)
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    char magic[4];
    struct stat st;

    return fd >= 0 && fstat(fd, &st) == 0 &&
           (S_ISREG(st.st_mode) || S_ISBLK(st.st_mode)) &&
           pread(fd, magic, 4, 0) == 4 && memcmp(magic, "QFI\xfb", 4) == 0;
}

/* One image and who is below it; `path` NULL: no file of this host. */
struct step {
    char *path;
    char format[32]; /* "": QEMU guesses */
};

static void step_fini(struct step *s)
{
    free(s->path);
}

static bool is_suffix(const char *key, const char *word)
{
    size_t n = strlen(key), tail = strlen(word);

    return n >= tail && strcmp(key + n - tail, word) == 0 &&
           (n == tail || key[n - tail - 1] == '.');
}

/* A relative name is taken from where QEMU is, not from the overlay: it is not
 * followed. */
static int step_json(struct step *out, const char *json,
                     struct qstill_error *err)
{
    CLEANUP(opts_fini) struct opts o = {0};
    struct qstill_error ignored = {0};
    const char *driver;

    if (opts_parse(&o, json, NULL, &ignored) < 0)
        return 0;
    driver = opts_get(&o, "driver");
    snprintf(out->format, sizeof(out->format), "%s", driver ? driver : "");
    for (size_t i = 0; i < o.count; i++) {
        const struct opts_pair *p = &o.pairs[i];

        if (!p->key || !is_suffix(p->key, "filename") || p->value[0] != '/' ||
            strncmp(p->key, "backing", 7) == 0)
            continue;
        out->path = strdup(p->value);
        return out->path ? 0 : err_nomem(err);
    }
    return 0;
}

static int step_down(struct step *s, struct step *out, struct qstill_error *err)
{
    CLEANUP(qcow2_info_fini) struct qcow2_info info = {0};
    const char *name;

    *out = (struct step){0};
    if (*s->format ? strcmp(s->format, "qcow2") != 0 : !is_qcow2(s->path))
        return 0;
    if (layer_info(s->path, "qcow2", &info, err) < 0)
        return err_wrap(err, "%s", s->path);
    if (!info.header.has_backing)
        return 0;
    name = info.header.backing;
    if (strncmp(name, "json:", 5) == 0)
        return step_json(out, name + 5, err);
    if (strncmp(name, "file:", 5) == 0)
        name += 5;
    snprintf(out->format, sizeof(out->format), "%s",
             info.header.backing_format);
    if (chain_resolve(s->path, name, &out->path, err) < 0)
        /* another protocol */
        return err->code == QSTILL_E_PRECONDITION ? err_clear(err) : err->code;
    return 0;
}

static int walk(const char *path, const char *format, struct qstill_error *err)
{
    CLEANUP(step_fini) struct step s = {.path = strdup(path)};

    if (!s.path)
        return err_nomem(err);
    if (format)
        snprintf(s.format, sizeof(s.format), "%s", format);
    for (size_t n = 0; s.path; n++) {
        struct step below;

        if (look(s.path, REACH_FILE, err) < 0)
            return n ? err_wrap(err, "a backing file of %s", path) : err->code;
        if (n == CHAIN_MAX)
            return err_set(err, QSTILL_E_CORRUPT,
                           "the backing files of %s make a loop", path);
        if (step_down(&s, &below, err) < 0) {
            step_fini(&below);
            return err->code;
        }
        step_fini(&s);
        s = below;
    }
    return 0;
}

int reach_chain(const struct reach *r, const char *path, const char *format,
                struct qstill_error *err)
{
    struct disguise d;
    int rc;

    if (put_on(r, &d, err) < 0)
        return err->code;
    rc = walk(path, format, err);
    take_off(&d);
    return rc;
}
