/* SPDX-License-Identifier: MIT */
/* Within launch_files.c, launch_images.c and launch_lines.c. */
#ifndef QSTILL_ENGINE_LAUNCH_FILES_IMPL_H
#define QSTILL_ENGINE_LAUNCH_FILES_IMPL_H

#include "launch_files.h"
#include "reach.h"

/* What QEMU does with a file that is named. */
enum files_how {
    READ,
    FIRMWARE,  /* a file, or the name of one of QEMU's own */
    LISTED,    /* files with ':' between them */
    PROGRAM,   /* "" and "no" are none */
    DIRECTORY, /* which QEMU reads */
    DEVICE,    /* read and written */
    PEER,      /* somebody else's socket, to connect to */
    MADE,      /* by QEMU, or written to */
    SOCKET,    /* made by QEMU */
    PIDFILE,   /* made by QEMU, which takes it away when it ends */
};

struct files {
    const struct launch_record *rec;
    const struct launch_args *args;
    const struct launch_disk *disks;
    size_t disk_count;
    int pid;
    struct reach reach;
    launch_file_fn *tell;
    void *user;
    struct qstill_error *err;
};

/* What QEMU could not open is told; what we could not find out is an error. */
int files_judge(struct files *f, const struct launch_arg *arg,
                const struct qstill_error *why);
/* What came as a descriptor is another's to tell. */
bool files_is_descriptor(const char *name);

int files_look(const struct files *f, const char *name, enum reach_kind kind,
               struct qstill_error *why);
/* Both: `name` may be NULL or "", which is none. */
int files_check_name(struct files *f, const struct launch_arg *arg,
                     enum files_how how, const char *name);

/* launch_lines.c: sockets and pipes, of character devices and others. */
int files_check_lines(struct files *f, const struct launch_arg *arg);
/* launch_images.c: the images of one argument. */
int files_check_images(struct files *f, const struct launch_arg *arg);

#endif
