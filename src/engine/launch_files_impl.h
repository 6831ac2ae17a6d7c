/* SPDX-License-Identifier: MIT */
/* Within launch_files.c and launch_images.c. */
#ifndef QSTILL_ENGINE_LAUNCH_FILES_IMPL_H
#define QSTILL_ENGINE_LAUNCH_FILES_IMPL_H

#include "launch_files.h"
#include "reach.h"

struct files {
    const struct launch_record *rec;
    const struct launch_args *args;
    const struct launch_disk *disks;
    size_t disk_count;
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

/* launch_images.c: the images of one argument. */
int files_check_images(struct files *f, const struct launch_arg *arg);

#endif
