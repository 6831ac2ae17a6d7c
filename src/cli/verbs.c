/* SPDX-License-Identifier: MIT */
/* The table of verbs, in the order in which --help lists them. */
#include "verbs.h"

const struct verb *const verbs[] = {
    /* VMs and snapshots */
    &verb_attach,
    &verb_detach,
    &verb_vms,
    &verb_check,
    &verb_create,
    &verb_list,
    &verb_info,
    &verb_verify,
    &verb_rename,
    &verb_revert,
    &verb_delete,
    &verb_undo,
    &verb_recover,
    &verb_start,
    &verb_path,
    /* images without a VM */
    &verb_image_info,
    &verb_image_map,
    &verb_image_check,
    &verb_image_compare,
    &verb_image_merge,
    &verb_image_flatten,
    /* measuring */
    &verb_bench_memory,
    &verb_bench_restore,
    &verb_bench_merge,
    /* the command itself */
    &verb_completion,
    &verb_help,
    NULL,
};
