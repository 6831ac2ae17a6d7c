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
 * headers of images, which nobody else may write to (BUSY). `pid`: the process
 * is there still, and when it is ended takes its pid file and its own locks
 * away; or 0. Of firmware without a directory in its name QEMU alone
 * knows where it is: nothing is said.
 */
int launch_files_check(const struct launch_record *rec,
                       const struct launch_args *args,
                       const struct launch_disk *disks, size_t disk_count,
                       int pid, launch_file_fn *tell, void *user,
                       struct qstill_error *err);

/* Whether what such an argument has QEMU open may be open for writing elsewhere
 * (share-rw, force-share, no locks at all). */
bool launch_may_share(const char *arg);

#endif
