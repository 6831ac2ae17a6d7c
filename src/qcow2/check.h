/* SPDX-License-Identifier: MIT */
/* The check of one image: all references against all refcounts. */
#ifndef QSTILL_QCOW2_CHECK_H
#define QSTILL_QCOW2_CHECK_H

#include "refs.h"

/* Damage is in the report, not an error. Only for qcow2 (PRECONDITION). */
int qcow2_check(struct image *img, struct refs_report *report,
                struct qstill_error *err);

#endif
