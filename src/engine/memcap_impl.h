/* SPDX-License-Identifier: MIT */
/* What the files of memcap.h share. */
#ifndef QSTILL_ENGINE_MEMCAP_IMPL_H
#define QSTILL_ENGINE_MEMCAP_IMPL_H

#include "memcap.h"

/* Why QEMU's migration ended: `err`, always. */
int memcap_migration_failed(struct memcap *m, const struct qmp_migration *mig,
                            struct qstill_error *err);
/* The RAM that is looked at behind TCG. */
int memcap_check_amended(struct memcap *m, struct qstill_error *err);

#endif
