/* SPDX-License-Identifier: MIT */
/* The verbs, each defined in the file of its name (groups share one). */
#ifndef QSTILL_CLI_VERBS_H
#define QSTILL_CLI_VERBS_H

#include "cli.h"

extern const struct verb verb_completion;

extern const struct verb verb_image_info; /* image.c */
extern const struct verb verb_image_map;
extern const struct verb verb_image_check;

extern const struct verb verb_help; /* usage.c */

#endif
