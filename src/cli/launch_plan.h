/* SPDX-License-Identifier: MIT */
/* What a launch will do, worked out while failing is still easy. */
#ifndef QSTILL_CLI_LAUNCH_PLAN_H
#define QSTILL_CLI_LAUNCH_PLAN_H

#include <sys/types.h>
#include <time.h>

#include "qstill.h"

#define LAUNCH_GROUPS_MAX 1024

/* All that the children need, made before the first fork: they may only call
 * what is safe between fork and exec. */
struct launch_plan {
    const struct qstill_launch *launch;
    const char *const *argv;
    const char *shell_argv[4];
    char **env;
    bool change_user;
    bool change_groups; /* the primary one, too */
    gid_t groups[LAUNCH_GROUPS_MAX];
    int group_count;
    bool wait_status;
    const char *socket; /* the VM's QMP socket, when a launcher is told */
    struct timespec socket_made; /* before the start; zero when missing */
    int null_fd;
    int log_fd;
    off_t log_start;
    int status_fd; /* write end */
};

/* Opens the log, too. To be finished in any case. */
int launch_plan_make(struct launch_plan *p, const struct qstill_launch *launch,
                     struct qstill_error *err);
void launch_plan_fini(struct launch_plan *p);

/* When the socket of this name was made; zero when there is none. */
struct timespec launch_socket_time(const char *path);

#endif
