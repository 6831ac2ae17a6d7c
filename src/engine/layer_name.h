/* SPDX-License-Identifier: MIT */
/* What the file of a new layer is called. */
#ifndef QSTILL_ENGINE_LAYER_NAME_H
#define QSTILL_ENGINE_LAYER_NAME_H

#include "base/error.h"

struct session;
struct vm_disk;

/* The path that layer_create() would give it, without a link or ".." in its
 * directory, and unlike those of the VM's other disks; NOT_FOUND when there is
 * no such directory. */
int layer_new_path(struct session *s, const struct vm_disk *d,
                   const char *disk_dir, const char *tag, const char **path,
                   struct qstill_error *err);
/* In that directory, with a tag that is this file's alone. */
int layer_path_in(struct session *s, const struct vm_disk *d, const char *dir,
                  const char *tag, const char **path, struct qstill_error *err);

#endif
