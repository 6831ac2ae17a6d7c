/* SPDX-License-Identifier: MIT */
/* Whether QEMU, as the user that it is started as, could open a file. */
#ifndef QSTILL_ENGINE_REACH_H
#define QSTILL_ENGINE_REACH_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "groups.h"

enum { REACH_GROUPS_MAX = 64 };

/* No driver of QEMU is called so. */
#define REACH_DATA "data"

/* `format`: "" when QEMU guesses. */
typedef int reach_image_fn(void *user, const char *path, const char *format,
                           struct qstill_error *err);

struct reach {
    bool other; /* we are root, and it is not */
    uint32_t uid, gid;
    int group_count;
    gid_t groups[REACH_GROUPS_MAX];
    const char *cwd; /* QEMU's; NULL: not known, and files that are named from
                        there are not looked at */
    bool locks; /* of an image: QEMU must get its lock to read it, too, but for
                   what process `own` has open itself */
    int own;
    /* called for each image of a chain, from the top on, when it can be opened,
       and behind it, as of format REACH_DATA, for each other file that its data
       are in; or NULL */
    reach_image_fn *each;
    void *user;
};

/* As one that is started as that user; finds its groups. */
void reach_init(struct reach *r, uint32_t uid, uint32_t gid);
/* The same with these groups, where they are known. */
void reach_init_groups(struct reach *r, uint32_t uid, uint32_t gid,
                       const struct groups *groups);
/* As a process that runs, with its groups and what it may besides. False: it
 * cannot be read. */
bool reach_init_process(struct reach *r, pid_t pid);

enum reach_kind {
    REACH_FILE,
    REACH_PROGRAM,
    REACH_DIRECTORY,
    REACH_PEER,   /* somebody else's socket */
    REACH_DEVICE, /* or a pipe: read and written */
    REACH_MADE,   /* a file that is made, or written to when it is there */
    REACH_REMADE, /* the same; the old one is removed by who made it */
    REACH_SOCKET, /* which is made, after the old one has been removed */
};

/* NOT_FOUND, PERMISSION, PRECONDITION (of another kind); the message names the
 * path and says why. Opens nothing. */
int reach_file(const struct reach *r, const char *path, enum reach_kind kind,
               struct qstill_error *err);

/*
 * The same of an image and of all that its header, and theirs, name as backing
 * files (qcow2, qed) and as files of the data (qcow2, the text of a vmdk).
 * `format`: the driver that QEMU opens it with, NULL when it guesses. What
 * leads to another protocol (nbd:, rbd:) is not followed. BUSY (r->locks) says
 * which process writes to one of them, as far as it can be seen.
 */
int reach_chain(const struct reach *r, const char *path, const char *format,
                struct qstill_error *err);

#endif
