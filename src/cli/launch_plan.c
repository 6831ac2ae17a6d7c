/* SPDX-License-Identifier: MIT */
#include "launch_plan.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli.h"

static bool has_daemonize(const char *const *argv)
{
    for (; *argv; argv++)
        if (strcmp(*argv, "-daemonize") == 0 ||
            strcmp(*argv, "--daemonize") == 0)
            return true;
    return false;
}

static bool has(const gid_t *list, size_t n, gid_t also, gid_t gid)
{
    bool found = gid == also;

    for (size_t i = 0; !found && i < n; i++)
        found = list[i] == gid;
    return found;
}

/* Whether we have the groups that QEMU is to have, and no other. */
static bool groups_are_ours(const struct qstill_launch *l)
{
    gid_t ours[LAUNCH_GROUPS_MAX];
    int n = getgroups(LAUNCH_GROUPS_MAX, ours);

    if (n < 0 || !has(ours, (size_t)n, getegid(), l->gid) ||
        !has(l->groups, l->group_count, l->gid, getegid()))
        return false;
    for (size_t i = 0; i < l->group_count; i++)
        if (!has(ours, (size_t)n, getegid(), l->groups[i]))
            return false;
    for (size_t i = 0; i < (size_t)n; i++)
        if (!has(l->groups, l->group_count, l->gid, ours[i]))
            return false;
    return true;
}

static int too_many_groups(const char *user, struct qstill_error *err)
{
    return cli_fail(err, QSTILL_E_FAILED, "user %s is in more than %d groups",
                    user, LAUNCH_GROUPS_MAX);
}

/* Of a user: how it is in /etc/group. */
static int find_groups(struct launch_plan *p, struct qstill_error *err)
{
    const struct qstill_launch *l = p->launch;
    struct passwd *pw = getpwuid(l->uid);

    p->group_count = 1;
    p->groups[0] = l->gid;
    if (!pw)
        return 0;
    p->group_count = LAUNCH_GROUPS_MAX;
    if (getgrouplist(pw->pw_name, l->gid, p->groups, &p->group_count) < 0)
        return too_many_groups(pw->pw_name, err);
    return 0;
}

static int plan_groups(struct launch_plan *p, struct qstill_error *err)
{
    const struct qstill_launch *l = p->launch;
    char uid[16];

    if (!l->groups) {
        p->change_groups = p->change_user;
        return p->change_user ? find_groups(p, err) : 0;
    }
    snprintf(uid, sizeof(uid), "%u", l->uid);
    if (l->group_count > LAUNCH_GROUPS_MAX)
        return too_many_groups(uid, err);
    p->change_groups = p->change_user || !groups_are_ours(l);
    p->group_count = (int)l->group_count;
    memcpy(p->groups, l->groups, l->group_count * sizeof(*p->groups));
    return 0;
}

static int plan_user(struct launch_plan *p, struct qstill_error *err)
{
    const struct qstill_launch *l = p->launch;

    if (l->launcher)
        return 0;
    if (geteuid() != 0 && l->uid != geteuid()) {
        cli_fail(err, QSTILL_E_PERMISSION,
                 "the VM ran as user %u and cannot be started as user %u",
                 l->uid, (unsigned)geteuid());
        snprintf(err->hint, sizeof(err->hint),
                 "run the command as that user or as root");
        return err->code;
    }
    /* else another primary group: ours will do */
    p->change_user = geteuid() == 0 && (l->uid != 0 || l->gid != getegid());
    return plan_groups(p, err);
}

static bool same_name(const char *a, const char *b)
{
    size_t n = strcspn(a, "=");

    return strncmp(a, b, n) == 0 && b[n] == '=';
}

/* Of our own environment: everything for our own user; for another only what
 * says where programs are and which language they speak. */
static bool keep_own(const struct launch_plan *p, const char *entry)
{
    static const char *const common[] = {"PATH=", "LANG=", "LC_ALL=", "TZ="};

    for (const char *const *e = p->launch->env; e && *e; e++)
        if (same_name(*e, entry))
            return false;
    if (!p->change_user)
        return true;
    for (size_t i = 0; i < ARRAY_LEN(common); i++)
        if (strncmp(entry, common[i], strlen(common[i])) == 0)
            return true;
    return false;
}

/* The array is ours, its strings belong to the environment and to `launch`. */
static int plan_env(struct launch_plan *p, struct qstill_error *err)
{
    size_t room = 1, n = 0;

    for (char **e = environ; *e; e++)
        room++;
    for (const char *const *e = p->launch->env; e && *e; e++)
        room++;
    p->env = calloc(room, sizeof(*p->env));
    if (!p->env)
        return cli_fail(err, QSTILL_E_FAILED, "out of memory");
    for (char **e = environ; *e; e++)
        if (keep_own(p, *e))
            p->env[n++] = *e;
    for (const char *const *e = p->launch->env; e && *e; e++)
        p->env[n++] = (char *)(uintptr_t)*e;
    return 0;
}

static int plan_files(struct launch_plan *p, struct qstill_error *err)
{
    const char *log = p->launch->log;
    struct stat st;

    p->null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    if (p->null_fd < 0)
        return cli_fail(err, QSTILL_E_FAILED, "opening /dev/null: %s",
                        strerror(errno));
    p->log_fd =
        log ? open(log, O_RDWR | O_APPEND | O_CREAT | O_NOFOLLOW | O_CLOEXEC,
                   0600)
            : fcntl(p->null_fd, F_DUPFD_CLOEXEC, 3);
    if (p->log_fd < 0)
        return cli_fail(err,
                        errno == EACCES || errno == EROFS ? QSTILL_E_PERMISSION
                                                          : QSTILL_E_FAILED,
                        "opening the VM's log %s: %s", log, strerror(errno));
    if (log && fstat(p->log_fd, &st) == 0)
        p->log_start = st.st_size;
    return 0;
}

struct timespec launch_socket_time(const char *path)
{
    struct stat st;

    return path && stat(path, &st) == 0 ? st.st_ctim : (struct timespec){0, 0};
}

static const char *env_value(const char *const *env, const char *name)
{
    for (; env && *env; env++)
        if (same_name(name, *env))
            return strchr(*env, '=') + 1;
    return NULL;
}

int launch_plan_make(struct launch_plan *p, const struct qstill_launch *launch,
                     struct qstill_error *err)
{
    *p = (struct launch_plan){.launch = launch, .null_fd = -1, .log_fd = -1};
    p->status_fd = -1;
    p->argv = launch->argv;
    if (launch->launcher) {
        p->shell_argv[0] = "/bin/sh";
        p->shell_argv[1] = "-c";
        p->shell_argv[2] = launch->launcher;
        p->argv = p->shell_argv;
        p->socket = env_value(launch->env, "QSTILL_QMP");
        p->socket_made = launch_socket_time(p->socket);
    }
    p->wait_status = launch->launcher || has_daemonize(launch->argv);
    if (plan_user(p, err) < 0 || plan_env(p, err) < 0)
        return err->code;
    return plan_files(p, err);
}

void launch_plan_fini(struct launch_plan *p)
{
    free(p->env);
    if (p->null_fd >= 0)
        close(p->null_fd);
    if (p->log_fd >= 0)
        close(p->log_fd);
    if (p->status_fd >= 0)
        close(p->status_fd);
}
