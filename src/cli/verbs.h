/* SPDX-License-Identifier: MIT */
/* The verbs, each defined in the file of its name (groups share one). */
#ifndef QSTILL_CLI_VERBS_H
#define QSTILL_CLI_VERBS_H

#include "cli.h"

extern const struct verb verb_attach;
extern const struct verb verb_check;
extern const struct verb verb_completion;
extern const struct verb verb_create;
extern const struct verb verb_delete;
extern const struct verb verb_detach; /* attach.c */
extern const struct verb verb_help;   /* usage.c */
extern const struct verb verb_info;
extern const struct verb verb_list;
extern const struct verb verb_path; /* start.c */
extern const struct verb verb_recover;
extern const struct verb verb_rename;
extern const struct verb verb_revert;
extern const struct verb verb_start;
extern const struct verb verb_undo;
extern const struct verb verb_verify;
extern const struct verb verb_vms;

extern const struct verb verb_image_info; /* image.c */
extern const struct verb verb_image_map;
extern const struct verb verb_image_check;
extern const struct verb verb_image_compare; /* image_compare.c */
extern const struct verb verb_image_merge;   /* image_merge.c */
extern const struct verb verb_image_flatten; /* image_flatten.c */

extern const struct verb verb_bench_memory; /* bench_*.c */
extern const struct verb verb_bench_restore;
extern const struct verb verb_bench_merge;

#endif
