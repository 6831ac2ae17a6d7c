/* SPDX-License-Identifier: MIT */
/*
 * nvdimms whose content is a file (memory-backend-file, share=on): RAM blocks
 * for QEMU, disks for the guest, and there when QEMU is gone. What is written
 * into one stays, also when the revert that did it is not finished.
 */
#ifndef QSTILL_ENGINE_NVDIMM_H
#define QSTILL_ENGINE_NVDIMM_H

#include "journal.h"

struct manifest;
struct session;

/* Those that a load of the snapshot's memory writes to, by the command line,
 * and the host's boot id, for a journal. */
int nvdimm_loads(struct session *s, const struct manifest *m,
                 struct arena *arena, struct journal_load **loads,
                 size_t *count, const char **boot, struct qstill_error *err);

/* Notes of each one that the guest may write to that its content is left out:
 * " is no part of this", say. */
void nvdimm_note(struct session *s, const char *what);
#define NVDIMM_NO_MEMORY                                                       \
    " belongs to no snapshot without memory: a revert leaves it as it is then"

/* QEMU has ended in a revert in place: the pages of the files become what they
 * were, but for those that somebody has written since. j->loads is empty when
 * all are. */
int nvdimm_put_back(struct session *s, struct journal *j, uint64_t *pages,
                    struct qstill_error *err);

/* That the files of j->loads are a part of this, a part of that. */
void nvdimm_tell_mixed(struct session *s, const struct journal *j);

#endif
