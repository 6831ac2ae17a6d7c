/* SPDX-License-Identifier: MIT */
#include "start.h"

#include <ctype.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "base/file.h"
#include "bases.h"
#include "headuse.h"
#include "json.h"
#include "launch_renew.h"
#include "session.h"

#define START_WAIT_MS 60000
#define LOG_TAIL      4096
/* Of qemu.log, and what is left when it is more; whole blocks of any
 * filesystem. */
#define LOG_MAX  (16u << 20)
#define LOG_KEPT (1 << 20)

/* ------------------------------------------------------------------ change */

static const struct start_head *head_for(const struct start_options *o,
                                         const char *disk)
{
    for (size_t i = 0; i < o->head_count; i++)
        if (strcmp(o->heads[i].disk, disk) == 0)
            return &o->heads[i];
    return NULL;
}

static int fill_change(struct session *s, const struct start_options *o,
                       struct launch_disk *disks, struct launch_change *change)
{
    for (size_t i = 0; i < s->rec.disk_count; i++) {
        const struct vm_disk *d = &s->rec.disks[i];
        const struct start_head *h = head_for(o, d->name);

        disks[i].name = d->name;
        disks[i].attach_path = d->attach_path;
        disks[i].attach_format = d->attach_format;
        disks[i].head_path = h ? h->path : d->head_path;
        disks[i].head_format = h ? h->format : d->head_format;
    }
    *change = (struct launch_change){
        .disks = disks,
        .disk_count = s->rec.disk_count,
        .mapped = o->mapped,
        .mapped_count = o->mapped_count,
        .mapped_readonly = o->mapped_readonly,
        .paused = o->paused,
        .incoming = o->incoming ? "defer" : NULL,
        .machine = o->machine,
    };
    return 0;
}

static int no_record(struct session *s, struct qstill_error *err)
{
    err_set(err, QSTILL_E_PRECONDITION,
            "how VM %s was started is not known, so it cannot be started "
            "again",
            s->vm);
    return err_hint(err, "attach it with the rights to see its process, or "
                         "with --launcher CMD");
}

int start_check(struct session *s, const struct start_options *o,
                struct qstill_error *err)
{
    struct launch_hinder_list hinders = {NULL, 0};
    struct launch_change change;
    struct launch_disk *disks;
    char **argv = NULL;

    if (!s->store->launch)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "no launch function: this program cannot start a VM");
    if (!s->rec.has_launch)
        return s->rec.launcher ? 0 : no_record(s, err);
    /* a launcher may have QEMU started by somebody who can */
    if (!s->rec.launcher && limits_check(&s->rec.launch.limits, err) < 0)
        return err->code;
    disks = arena_array(&s->rec.arena, s->rec.disk_count + 1, sizeof(*disks));
    if (!disks)
        return err_nomem(err);
    fill_change(s, o, disks, &change);
    if (launch_build(&s->rec.launch, &change, &argv, err) < 0)
        return s->rec.launcher && !o->mapped_count ? (err->code = 0)
                                                   : err->code;
    launch_argv_free(argv);
    if (s->rec.launcher)
        return 0;
    if (launch_hinders(&s->rec.launch, disks, s->rec.disk_count, s->pid,
                       &hinders, err) < 0)
        return err->code;
    for (size_t i = 0; i < hinders.count && err->code == 0; i++)
        if (hinders.items[i].weight == LAUNCH_BLOCKER) {
            err_set(err, QSTILL_E_PRECONDITION,
                    "VM %s cannot be started again: %s", s->vm,
                    hinders.items[i].message);
            err_hint(err, "%s", hinders.items[i].hint);
        }
    launch_hinder_list_fini(&hinders);
    return err->code;
}

int start_check_overlays(struct session *s, struct qstill_error *err)
{
    struct start_head *heads =
        arena_array(&s->rec.arena, s->rec.disk_count + 1, sizeof(*heads));
    struct start_options o = {.heads = heads, .head_count = s->rec.disk_count};

    if (!heads)
        return err_nomem(err);
    for (size_t i = 0; i < s->rec.disk_count; i++)
        heads[i] = (struct start_head){s->rec.disks[i].name,
                                       "/overlay.qcow2", /* is not looked at */
                                       "qcow2"};
    return start_check(s, &o, err);
}

/* --------------------------------------------------------------------- env */

static int add_env(struct session *s, char **env, size_t *n, const char *key,
                   const char *value, struct qstill_error *err)
{
    env[*n] = arena_printf(&s->rec.arena, "%s=%s", key, value);
    return env[(*n)++] ? 0 : err_nomem(err);
}

static char *disk_key(struct session *s, const char *disk)
{
    char *key = arena_printf(&s->rec.arena, "QSTILL_DISK_%s", disk);

    for (char *p = key; p && *p; p++)
        if (!isalnum((unsigned char)*p))
            *p = '_';
    return key;
}

/* The recorded environment, and what a launcher command wants to know. */
static int build_env(struct session *s, const struct launch_change *change,
                     const char *tag, char **argv, char ***out,
                     struct qstill_error *err)
{
    CLEANUP(freep) char *json = argv ? json_text_of_strings(argv) : NULL;
    char **rec_env = s->rec.has_launch ? s->rec.launch.env : NULL;
    size_t n = 0, old = 0;
    char **env;

    while (rec_env && rec_env[old])
        old++;
    env =
        arena_array(&s->rec.arena, old + change->disk_count + 8, sizeof(*env));
    if (!env || (argv && !json))
        return err_nomem(err);
    for (size_t i = 0; i < old; i++)
        if (strncmp(rec_env[i], START_TAG_KEY "=", sizeof(START_TAG_KEY)) != 0)
            env[n++] = rec_env[i];
    *out = env;
    /* always there: start_was_ours() */
    if (add_env(s, env, &n, START_TAG_KEY, tag ? tag : "-", err) < 0)
        return err->code;
    if (!s->rec.launcher)
        return 0;
    for (size_t i = 0; i < change->disk_count; i++) {
        char *key = disk_key(s, change->disks[i].name);

        if (!key ||
            add_env(s, env, &n, key, change->disks[i].head_path, err) < 0)
            return err_nomem(err);
    }
    if (json && add_env(s, env, &n, "QSTILL_ARGV_JSON", json, err) < 0)
        return err->code;
    if (add_env(s, env, &n, "QSTILL_PAUSED", change->paused ? "1" : "", err) <
            0 ||
        add_env(s, env, &n, "QSTILL_INCOMING",
                change->incoming ? change->incoming : "", err) < 0)
        return err->code;
    return add_env(s, env, &n, "QSTILL_QMP", s->rec.qmp, err);
}

/* ------------------------------------------------------------------ launch */

static char *log_path(struct session *s)
{
    CLEANUP(freep) char *dir = realpath(s->store->dir, NULL);

    return arena_printf(&s->rec.arena, "%s/%s/" STORE_QEMU_LOG,
                        dir ? dir : s->store->dir, s->vm);
}

void start_last_words(struct session *s, char *out, size_t size)
{
    CLEANUP(closep) int fd = -1;
    struct qstill_error ignored = {0};
    char tail[LOG_TAIL + 1];
    struct stat st;
    size_t got = 0;
    char *line;

    out[0] = '\0';
    if (file_openat(s->vmfd, STORE_QEMU_LOG, O_RDONLY, 0, &fd, &ignored) < 0 ||
        fstat(fd, &st) < 0)
        return;
    if (file_read_upto(fd, tail, LOG_TAIL,
                       st.st_size > LOG_TAIL ? (uint64_t)st.st_size - LOG_TAIL
                                             : 0,
                       &got, &ignored) < 0)
        return;
    while (got > 0 && (tail[got - 1] == '\n' || tail[got - 1] == '\r'))
        got--;
    tail[got] = '\0';
    line = strrchr(tail, '\n');
    snprintf(out, size, "%s", line ? line + 1 : tail);
}

void start_trim_log(struct session *s)
{
    CLEANUP(closep) int fd = -1;
    struct qstill_error ignored = {0};
    struct stat st;
    off_t cut;

    if (file_openat(s->vmfd, STORE_QEMU_LOG, O_RDWR, 0, &fd, &ignored) < 0 ||
        fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) ||
        (uint64_t)st.st_blocks * 512 <= LOG_MAX)
        return;
    cut = st.st_size / LOG_KEPT * LOG_KEPT - LOG_KEPT;
    /* QEMU appends: it does not mind. Not every filesystem can do the first. */
    if (cut > 0 && fallocate(fd, FALLOC_FL_COLLAPSE_RANGE, 0, cut) < 0)
        fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, cut);
}

static int died(struct session *s, struct qstill_error *err)
{
    char words[300];

    start_last_words(s, words, sizeof(words));
    err_set(err, QSTILL_E_FAILED, "QEMU did not start%s%s",
            words[0] ? ": " : "", words);
    return err_hint(err, "its output is in %s", log_path(s));
}

static int wait_monitor(struct session *s, int pid, struct qstill_error *err)
{
    double deadline = clock_ms() + START_WAIT_MS;

    for (;;) {
        err->code = 0;
        if (session_try(s, err) == 0 && s->qmp)
            return 0;
        if (err->code < 0 && err->code != QSTILL_E_UNREACHABLE)
            return err->code;
        if (pid > 0 && start_has_ended(pid, 0))
            return died(s, err);
        if (clock_ms() > deadline)
            return err_set(err, QSTILL_E_UNREACHABLE,
                           "QEMU was started, but its monitor %s does not "
                           "answer",
                           s->rec.qmp);
        clock_sleep_ms(5);
    }
}

static int launch(struct session *s, const struct launch_change *change,
                  const char *tag, int *pid, struct qstill_error *err)
{
    struct qstill_launch l = {.size = sizeof(l)};
    char **argv = NULL, **env = NULL;
    struct qstill_error why = {0};
    int r;

    if (s->rec.has_launch &&
        launch_build(&s->rec.launch, change, &argv, &why) < 0 &&
        !s->rec.launcher) {
        *err = why;
        return err->code;
    }
    if (build_env(s, change, tag, argv, &env, err) < 0 ||
        (s->rec.launcher && launch_note(s, LAUNCH_ASKED, argv, err) < 0)) {
        launch_argv_free(argv);
        return err->code;
    }
    l.argv = (const char *const *)argv;
    l.env = (const char *const *)env;
    l.cwd = s->rec.has_launch ? s->rec.launch.cwd : "/";
    l.log = log_path(s);
    l.launcher = s->rec.launcher;
    l.uid = s->rec.has_launch ? s->rec.launch.uid : (uint32_t)geteuid();
    l.gid = s->rec.has_launch ? s->rec.launch.gid : (uint32_t)getegid();
    l.limits = s->rec.launch.limits.v;
    l.limit_count = s->rec.launch.limits.n;
    if (s->rec.has_launch && !s->rec.launcher) {
        confine_give(&s->rec.launch.confine, l.uid, &l);
        l.groups = s->rec.launch.groups.known ? s->rec.launch.groups.v : NULL;
        l.group_count = s->rec.launch.groups.n;
    }
    r = s->store->launch(s->store->launch_user, &l, pid, err);
    launch_argv_free(argv);
    if (r < 0 && err->code == 0)
        err_set(err, QSTILL_E_FAILED, "cannot start QEMU");
    return err->code;
}

int start_vm(struct session *s, const struct start_options *o, int *pid,
             struct qstill_error *err)
{
    struct launch_change change;
    struct launch_disk *disks;

    *pid = 0;
    if (start_check(s, o, err) < 0)
        return err->code;
    disks = arena_array(&s->rec.arena, s->rec.disk_count + 1, sizeof(*disks));
    if (!disks)
        return err_nomem(err);
    fill_change(s, o, disks, &change);
    session_disconnect(s);
    if (launch(s, &change, o->tag, pid, err) < 0)
        return err->code;
    if (wait_monitor(s, *pid, err) < 0) {
        start_kill(s, *pid);
        return err->code;
    }
    if (s->rec.launcher)
        launch_note_started(s);
    return 0;
}

/* ------------------------------------------------------------------- public */

QSTILL_PUBLIC int qstill_vm_start(struct qstill_store *store, const char *vm,
                                  bool paused, struct qstill_error *caller_err)
{
    struct qstill_error scratch, *err = err_door(caller_err, &scratch);
    struct start_options o = {.paused = paused};
    struct session s;
    int pid;

    if (session_open(&s, store, vm, "start", err) < 0)
        return err->code;
    if (session_connect(&s, err) == 0) {
        if (!s.qmp)
            bases_note(&s, s.rec.current);
        if (s.qmp) {
            err_set(err, QSTILL_E_BUSY, "VM %s is on already (%s)", vm,
                    s.status.state);
        } else if (headuse_check(&s, err) == 0 &&
                   start_vm(&s, &o, &pid, err) == 0 && s.rec.mapped &&
                   vmrecord_set_mapped(&s.rec, NULL, err) == 0) {
            vmrecord_save(s.vmfd, &s.rec, err);
        }
    }
    session_close(&s);
    return err->code;
}
