/* SPDX-License-Identifier: MIT */
/*
 * The parts of QMP that are no noun of their own: object properties, the human
 * monitor, passed file descriptors, and waiting for events.
 */
#ifndef QSTILL_QMP_MONITOR_H
#define QSTILL_QMP_MONITOR_H

#include "base/error.h"

struct qstill_qmp;

/* --- object properties. NOT_FOUND: no such object or property. A property of
 * another type is FAILED. Strings are the caller's (free). */
int qmp_qom_get_string(struct qstill_qmp *q, const char *path,
                       const char *property, char **out,
                       struct qstill_error *err);
int qmp_qom_get_bool(struct qstill_qmp *q, const char *path,
                     const char *property, bool *out, struct qstill_error *err);
int qmp_qom_get_u64(struct qstill_qmp *q, const char *path,
                    const char *property, uint64_t *out,
                    struct qstill_error *err);
int qmp_qom_set_string(struct qstill_qmp *q, const char *path,
                       const char *property, const char *value,
                       struct qstill_error *err);

/* --- whether QEMU has a command, from query-commands: a few KiB, where the
 * whole schema is hundreds. */
int qmp_has_command(struct qstill_qmp *q, const char *command, bool *has,
                    struct qstill_error *err);

/* Whether objects of the type have the property; a type that QEMU does not know
 * has none. */
int qmp_type_has_property(struct qstill_qmp *q, const char *type,
                          const char *property, bool *has,
                          struct qstill_error *err);

/* Types Alt-SysRq-KEY at the guest's keyboard (`key` is a qcode). */
int qmp_send_sysrq(struct qstill_qmp *q, const char *key,
                   struct qstill_error *err);

/* --- human monitor: the text it prints (the caller's). Its own errors are
 * text too, and no failure here. */
int qmp_hmp(struct qstill_qmp *q, const char *line, char **out,
            struct qstill_error *err);

/* --- file descriptors; `fd` stays the caller's. A name begins with a letter.
 * getfd: QEMU's copy goes when the name is used by a command or closed. */
int qmp_getfd(struct qstill_qmp *q, const char *name, int fd,
              struct qstill_error *err);
/* Fine when the name is gone already. */
int qmp_closefd(struct qstill_qmp *q, const char *name,
                struct qstill_error *err);

/* add-fd: a new fd set, reachable as /dev/fdset/N. QEMU uses it only for opens
 * of the same access mode and the same O_DIRECT as the fd's own. */
int qmp_add_fd(struct qstill_qmp *q, int fd, const char *opaque, int64_t *fdset,
               struct qstill_error *err);
/* The same; *number is what the fd is in QEMU, or -1. */
int qmp_lend_fd(struct qstill_qmp *q, int fd, const char *opaque,
                int64_t *fdset, int *number, struct qstill_error *err);
/* One more fd into a set (a plain and an O_DIRECT one, say). */
int qmp_add_fd_to(struct qstill_qmp *q, int64_t fdset, int fd,
                  struct qstill_error *err);
/* Fine when the set is gone already. */
int qmp_remove_fd(struct qstill_qmp *q, int64_t fdset,
                  struct qstill_error *err);
/* Removes all that were given with one of these texts (NULL-terminated), from
 * whatever set; *taken is how many. */
int qmp_take_fds_back(struct qstill_qmp *q, const char *const *opaques,
                      size_t *taken, struct qstill_error *err);

/* --- events. Members that an event does not have are "". */
struct qmp_event {
    char name[48];
    char status[48]; /* data.status: MIGRATION, JOB_STATUS_CHANGE */
    char id[128];    /* data.id, else data.device: jobs, block jobs */
    char error[256]; /* data.error */
    int64_t seconds; /* QEMU's clock; -1 when it has none */
    int64_t microseconds;
};

/*
 * Takes the first event, queued or coming, whose name is one of `names`
 * (NULL-terminated); other events stay queued in their order. *found is false,
 * and 0 returned, when none came within timeout_ms (0: only what has arrived).
 */
int qmp_wait_event(struct qstill_qmp *q, const char *const *names,
                   uint32_t timeout_ms, struct qmp_event *out, bool *found,
                   struct qstill_error *err);
/* *yes: the guest was started since the last call, by whomever. Takes these
 * events; without waiting. */
int qmp_was_resumed(struct qstill_qmp *q, bool *yes, struct qstill_error *err);
/* The same of a guest that ran and was stopped. */
int qmp_was_stopped(struct qstill_qmp *q, bool *yes, struct qstill_error *err);
/* The same of a machine that was reset. */
int qmp_was_reset(struct qstill_qmp *q, bool *yes, struct qstill_error *err);
/* The same of a device that was unplugged. */
int qmp_was_unplugged(struct qstill_qmp *q, bool *yes,
                      struct qstill_error *err);
/* Throws away all that is queued or has arrived. */
int qmp_drop_events(struct qstill_qmp *q, struct qstill_error *err);

#endif
