/* SPDX-License-Identifier: MIT */
/*
 * What keeps a VM's QEMU from the rest of the host, beside its user and its
 * limits: namespaces, a root directory, capabilities, no_new_privs, seccomp
 * filters. Kept for the next one, which is started by somebody who may have
 * all of that. As text they are words, one blank apart: "nnp=1 filters=0
 * caps=41 bnd=HEX prm=HEX inh=HEX amb=HEX boot=UUID since=TICKS
 * user=INODE ... apart=user,mnt"; without a text (NULL) nothing is known.
 */
#ifndef QSTILL_ENGINE_CONFINE_H
#define QSTILL_ENGINE_CONFINE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/arena.h"
#include "base/error.h"
#include "qstill.h"

enum confine_space {
    CONFINE_USER,
    CONFINE_PID,
    CONFINE_MNT,
    CONFINE_NET,
    CONFINE_IPC,
    CONFINE_UTS,
    CONFINE_SPACES,
    CONFINE_ROOT = CONFINE_SPACES, /* of `apart` alone, as what follows */
    CONFINE_VIEW, /* in another `mnt`, but with the mounts of who looked */
    CONFINE_APART
};

struct confine {
    bool known;
    bool no_new_privs;
    unsigned filters;
    unsigned caps; /* how many the kernel knew */
    uint64_t bounding, permitted, inheritable, ambient;
    /* Inodes of namespaces, 0: not known. They mean nothing in another boot, or
     * when the namespace is gone: then `apart` counts, a bit for each that was
     * not that of who looked. */
    char boot[40];
    uint64_t since; /* when it began: clock ticks after boot, 0: not known */
    uint64_t space[CONFINE_SPACES];
    unsigned apart;
};

/* Of the process whose /proc directory this is; `status` is the text of that
 * file in it. What cannot be read is not known. */
void confine_read(int procfd, const char *status, struct confine *out);
bool confine_is_same(const struct confine *a, const struct confine *b);

/* CORRUPT: no such word. */
int confine_parse(const char *text, struct confine *out,
                  struct qstill_error *err);
/* In the arena; NULL: nothing is known. */
int confine_format(const struct confine *c, struct arena *a, char **out,
                   struct qstill_error *err);

/*
 * Whether a process that we start as `uid` can be kept to all of it:
 * PRECONDITION says what not. `own_sandbox`: it makes a filter itself.
 */
int confine_check(const struct confine *c, uint32_t uid, bool own_sandbox,
                  struct qstill_error *err);
/* What can be given is to be given. */
void confine_give(const struct confine *c, uint32_t uid,
                  struct qstill_launch *launch);

#endif
