/* SPDX-License-Identifier: MIT */
#include "reach.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/fsuid.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "launch_disk.h"
#include "launch_opts.h"
#include "opened.h"
#include "qcow2/chain.h"
#include "qcow2/lock.h"
#include "qcow2/stored_names.h"

/* No disk has more images; then it is a loop. */
#define CHAIN_MAX 4096
#define LINKS_MAX 40 /* as the kernel */

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

void reach_init_groups(struct reach *r, uint32_t uid, uint32_t gid,
                       const struct groups *groups)
{
    reach_init(r, uid, gid);
    if (!r->other || !groups->known)
        return;
    for (r->group_count = 0; r->group_count < REACH_GROUPS_MAX &&
                             (size_t)r->group_count < groups->n;
         r->group_count++)
        r->groups[r->group_count] = groups->v[r->group_count];
}

/* Bits of capabilities(7): no file is closed to who has one of them. */
#define MAY_READ_ALL                                                           \
    (1ull << 1 | 1ull << 2) /* DAC_OVERRIDE, DAC_READ_SEARCH                   \
                             */

static void read_groups(struct reach *r, const char *text)
{
    char *end;

    for (r->group_count = 0; r->group_count < REACH_GROUPS_MAX; text = end) {
        unsigned long gid = strtoul(text, &end, 10);

        if (end == text)
            break;
        r->groups[r->group_count++] = (gid_t)gid;
    }
}

bool reach_init_process(struct reach *r, pid_t pid)
{
    char path[40], line[1024];
    unsigned long long caps = 0;
    bool uid = false, gid = false;
    FILE *f;

    *r = (struct reach){0};
    snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
    f = fopen(path, "re");
    while (f && fgets(line, sizeof(line), f)) {
        /* the last of four is for files */
        uid |= sscanf(line, "Uid: %*u %*u %*u %u", &r->uid) == 1;
        gid |= sscanf(line, "Gid: %*u %*u %*u %u", &r->gid) == 1;
        sscanf(line, "CapEff: %llx", &caps);
        if (strncmp(line, "Groups:", 7) == 0)
            read_groups(r, line + 7);
    }
    if (f)
        fclose(f);
    r->other = geteuid() == 0 && r->uid != 0 && !(caps & MAY_READ_ALL);
    return uid && gid;
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

/* Where it cannot be put on, root's own look must do: more groups than could be
 * given back, a root that may not change them. */
static void put_on(const struct reach *r, struct disguise *d)
{
    *d = (struct disguise){0};
    if (!r->other)
        return;
    d->group_count = getgroups(REACH_GROUPS_MAX, d->groups);
    if (d->group_count < 0 ||
        syscall(SYS_setgroups, r->group_count, r->groups) < 0)
        return;
    setfsgid(r->gid);
    setfsuid(r->uid); /* and root's capabilities for files are gone */
    d->on = true;
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

static char *folder_of(const char *path)
{
    const char *slash = strrchr(path, '/');

    return strndup(path, slash > path ? (size_t)(slash - path) : 1);
}

/* Where a file that is not there would be made: of a link that leads nowhere,
 * what it names. NULL: no memory, or no end of links. */
static char *made_at(const char *path)
{
    char *at = strdup(path);

    for (int n = 0; at && n < LINKS_MAX; n++) {
        CLEANUP(freep) char *old = at;
        CLEANUP(freep) char *dir = NULL;
        char text[PATH_MAX];
        ssize_t len = readlink(at, text, sizeof(text) - 1);

        if (len < 0) {
            old = NULL;
            return at;
        }
        text[len] = '\0';
        dir = folder_of(at);
        at = dir ? launch_resolve(dir, text) : NULL;
    }
    free(at);
    return NULL;
}

/* Whether who we are now may put a new name into a directory, and `old`, if it
 * is there, away. */
static int look_folder(const char *old, struct qstill_error *err)
{
    CLEANUP(freep) char *dir = folder_of(old);
    uid_t uid = (uid_t)setfsuid((uid_t)-1); /* changes nothing */
    struct stat st, in;

    if (!dir)
        return err_nomem(err);
    if (faccessat(AT_FDCWD, dir, W_OK | X_OK, AT_EACCESS) < 0) {
        if (errno == ENOENT || errno == ENOTDIR)
            return err_set(err, QSTILL_E_NOT_FOUND,
                           "%s cannot be made: its directory is gone", old);
        return err_set(err, QSTILL_E_PERMISSION,
                       "%s cannot be made by the user of QEMU: %s", old,
                       strerror(errno));
    }
    if (uid != 0 && lstat(old, &st) == 0 && stat(dir, &in) == 0 &&
        (in.st_mode & S_ISVTX) && st.st_uid != uid && in.st_uid != uid)
        return err_set(err, QSTILL_E_PERMISSION,
                       "%s cannot be made by the user of QEMU: the old one is "
                       "another user's",
                       old);
    return 0;
}

static int look_made(const char *path, struct qstill_error *err)
{
    CLEANUP(freep) char *at = NULL;

    if (faccessat(AT_FDCWD, path, W_OK, AT_EACCESS) == 0)
        return 0;
    if (errno != ENOENT)
        return err_set(err, QSTILL_E_PERMISSION,
                       "%s cannot be written by the user of QEMU: %s", path,
                       strerror(errno));
    at = made_at(path);
    if (!at)
        return err_nomem(err);
    return look_folder(at, err) == 0 || strcmp(at, path) == 0
               ? err->code
               : err_wrap(err, "%s is a link", path);
}

static int look_at_made(const char *path, enum reach_kind kind,
                        struct qstill_error *err)
{
    struct stat st;

    if (stat(path, &st) == 0 && S_ISDIR(st.st_mode))
        return err_set(err, QSTILL_E_PRECONDITION, "%s is a directory", path);
    if (kind == REACH_SOCKET)
        return look_folder(path, err);
    if (kind == REACH_REMADE && look_folder(path, err) == 0)
        return 0;
    err_clear(err);
    return look_made(path, err);
}

static int look(const char *path, enum reach_kind kind,
                struct qstill_error *err)
{
    static const int access[] = {
        [REACH_FILE] = R_OK,
        [REACH_PROGRAM] = X_OK,
        [REACH_DIRECTORY] = R_OK | X_OK,
        [REACH_PEER] = W_OK,
        [REACH_DEVICE] = R_OK | W_OK,
    };
    struct stat st;
    int how;

    if (kind >= REACH_MADE)
        return look_at_made(path, kind, err);
    how = access[kind];
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

    put_on(r, &d);
    rc = look(path, kind, err);
    take_off(&d);
    return rc;
}

/* -------------------------------------------------------------------- chains
 */

/* One image and who is below it; `path` NULL: no file of this host. */
struct step {
    char *path;
    char format[32]; /* "": QEMU guesses */
    /* of a name with a "backing" inside, which counts instead of the image's
     * own header; else NULL */
    char *json;
    char prefix[OPTS_KEY_MAX];
    bool data_told; /* there, too, not in the image */
};

static void step_fini(struct step *s)
{
    free(s->path);
    free(s->json);
}

/* What the part of the name below `prefix` says of the image below. A relative
 * name is taken from where QEMU is, not from the overlay: it is not followed.
 */
static int step_json(struct step *out, const char *json, const char *prefix,
                     struct qstill_error *err)
{
    CLEANUP(opts_fini) struct opts o = {0};
    struct qstill_error ignored = {0};
    char key[OPTS_KEY_MAX + 16];
    size_t n = strlen(prefix);
    const char *driver;

    if (opts_parse(&o, json, NULL, &ignored) < 0)
        return 0;
    snprintf(key, sizeof(key), "%sdriver", prefix);
    driver = opts_get(&o, key);
    snprintf(out->format, sizeof(out->format), "%s", driver ? driver : "");
    snprintf(key, sizeof(key), "%sbacking", prefix);
    if (opts_has(&o, key) && strlen(key) + 1 < sizeof(out->prefix)) {
        out->json = strdup(json);
        if (!out->json)
            return err_nomem(err);
        snprintf(out->prefix, sizeof(out->prefix), "%s.", key);
    }
    snprintf(key, sizeof(key), "%sdata-file", prefix);
    out->data_told = opts_has(&o, key);
    for (size_t i = 0; i < o.count; i++) {
        const struct opts_pair *p = &o.pairs[i];

        if (!opts_key_is(p->key, "filename") || p->value[0] != '/' ||
            strncmp(p->key, prefix, n) != 0 ||
            strncmp(p->key + n, "backing", 7) == 0 ||
            strncmp(p->key + n, "data-file", 9) == 0)
            continue;
        out->path = strdup(p->value);
        return out->path ? 0 : err_nomem(err);
    }
    return 0;
}

/* QEMU opens more than our own reader does: links, block devices, what we would
 * call damaged. Where this finds nothing out, nothing is said. */
static int open_image(const struct step *s)
{
    CLEANUP(closep)
    int fd = open(s->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    struct stat st;
    int out;

    if (fd < 0 || fstat(fd, &st) < 0 ||
        (!S_ISREG(st.st_mode) && !S_ISBLK(st.st_mode)))
        return -1;
    out = fd;
    fd = -1;
    return out;
}

/* The image's other files: of a qcow2 QEMU takes the name from where it is
 * itself, of a vmdk from the image's folder. */
static int look_at_data(const struct reach *r, const struct step *s,
                        const struct stored_names *names,
                        struct qstill_error *err)
{
    bool vmdk = strcmp(names->format, "vmdk") == 0;

    for (size_t i = 0; i < names->data_count && !names->data_unread; i++) {
        const char *name = launch_plain_name(names->data[i]);
        CLEANUP(freep) char *path = NULL;

        if (!name || (!vmdk && name[0] != '/' && !r->cwd))
            continue;
        if (vmdk && chain_resolve(s->path, name, &path, err) < 0)
            return err->code;
        if (!vmdk && !(path = launch_resolve(r->cwd, name)))
            return err_nomem(err);
        if (look(path, REACH_FILE, err) < 0)
            return err_wrap(err, "data of %s", s->path);
        if (r->each && r->each(r->user, path, REACH_DATA, err) < 0)
            return err->code;
    }
    return 0;
}

static int step_to(const struct step *s, const char *name, const char *format,
                   struct step *out, struct qstill_error *err)
{
    if (strncmp(name, "json:", 5) == 0)
        return step_json(out, name + 5, "", err);
    if (strncmp(name, "file:", 5) == 0)
        name += 5;
    snprintf(out->format, sizeof(out->format), "%s", format);
    if (chain_resolve(s->path, name, &out->path, err) < 0)
        /* another protocol */
        return err->code == QSTILL_E_PRECONDITION ? err_clear(err) : err->code;
    return 0;
}

/* Of an image that names others; false: nothing is found out. */
static bool read_names(const struct step *s, struct stored_names *names,
                       struct qcow2_info *info)
{
    CLEANUP(closep) int fd = open_image(s);
    struct qstill_error ignored = {0};

    return fd >= 0 && stored_names_read(io_real(), fd, names, &ignored) == 0 &&
           names->format &&
           (!*s->format || strcmp(s->format, names->format) == 0) &&
           (strcmp(names->format, "qcow2") != 0 ||
            qcow2_info_read_fd(io_real(), fd, QCOW2_FORMAT_QCOW2, info,
                               &ignored) == 0);
}

static int step_down(const struct reach *r, const struct step *s,
                     struct step *out, struct qstill_error *err)
{
    CLEANUP(qcow2_info_fini) struct qcow2_info info = {0};
    CLEANUP(stored_names_fini) struct stored_names names = {0};
    bool named = read_names(s, &names, &info);

    *out = (struct step){0};
    if (named && !s->data_told && look_at_data(r, s, &names, err) < 0)
        return err->code;
    if (s->json)
        return step_json(out, s->json, s->prefix, err);
    if (info.header.has_backing)
        return step_to(s, info.header.backing, info.header.backing_format, out,
                       err);
    return named && stored_names_is_qed(&names) && names.backing
               ? step_to(s, names.backing, names.backing_raw ? "raw" : "", out,
                         err)
               : 0;
}

/* A process that cannot be looked into may be the one that writes to it. */
static bool is_own(const struct reach *r, const char *path)
{
    CLEANUP(opened_fini) struct opened o = {0};
    struct qstill_error ignored = {0};

    return r->own > 0 && (opened_read(&o, r->own, &ignored) < 0 || !o.known ||
                          opened_has(&o, path));
}

static int look_at_lock(const struct reach *r, const struct step *s,
                        struct qstill_error *err)
{
    CLEANUP(closep) int fd = open_image(s);
    char who[64];

    if (fd < 0 || image_lock_look(fd, s->path, IMAGE_LOCK_READ, err) == 0)
        return 0;
    if (is_own(r, s->path))
        return err_clear(err);
    opened_describe(opened_by(s->path, r->own), who, sizeof(who));
    return err_hint(err, "end %s, or wait until it is done", who);
}

static int walk(const struct reach *r, const char *path, const char *format,
                struct qstill_error *err)
{
    CLEANUP(step_fini) struct step s = {.path = strdup(path)};

    if (!s.path)
        return err_nomem(err);
    if (format)
        snprintf(s.format, sizeof(s.format), "%s", format);
    for (size_t n = 0; s.path; n++) {
        struct step below;

        if (look(s.path, REACH_FILE, err) < 0 ||
            (r->locks && look_at_lock(r, &s, err) < 0))
            return n ? err_wrap(err, "a backing file of %s", path) : err->code;
        if (r->each && r->each(r->user, s.path, s.format, err) < 0)
            return err->code;
        if (n == CHAIN_MAX)
            return err_set(err, QSTILL_E_CORRUPT,
                           "the backing files of %s make a loop", path);
        if (step_down(r, &s, &below, err) < 0) {
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

    put_on(r, &d);
    rc = walk(r, path, format, err);
    take_off(&d);
    return rc;
}
