/* SPDX-License-Identifier: MIT */
/* The table of verbs, in the order in which --help lists them. */
#include "verbs.h"

const struct verb *const verbs[] = {
    &verb_image_info,
    &verb_image_map,
    &verb_image_check,
    &verb_completion,
    &verb_help,
    NULL,
};
