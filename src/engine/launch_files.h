/* SPDX-License-Identifier: MIT */
/* The files that a command line has QEMU open when it starts. */
#ifndef QSTILL_ENGINE_LAUNCH_FILES_H
#define QSTILL_ENGINE_LAUNCH_FILES_H

#include "launch.h"
#include "launch_args.h"

/* Gets an argument whose file a start could not open (NULL: a disk's image),
 * and why. */
typedef int launch_file_fn(void *user, const struct launch_arg *arg,
                           const struct qstill_error *why);

/*
 * Looks at all of them but the images of `disks`, whose places others will
 * take: images with their backing files, kernels, firmware, ROMs, fw_cfg and
 * loader files, secrets, scripts; and whether what QEMU makes can be made:
 * sockets, logs, a pid file. As the user of rec; nothing is opened but the
 * headers of images. `runs`: the process is there still, and takes its pid file
 * away when it is ended. Of firmware without a directory in its name QEMU alone
 * knows where it is: nothing is said.
 */
int launch_files_check(const struct launch_record *rec,
                       const struct launch_args *args,
                       const struct launch_disk *disks, size_t disk_count,
                       bool runs, launch_file_fn *tell, void *user,
                       struct qstill_error *err);

#endif
