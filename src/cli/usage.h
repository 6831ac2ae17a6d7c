/* SPDX-License-Identifier: MIT */
/* Usage and --help, made from the tables of the verbs. */
#ifndef QSTILL_CLI_USAGE_H
#define QSTILL_CLI_USAGE_H

#include <stdio.h>

#include "cli.h"

void usage_all(FILE *f);
void usage_verb(FILE *f, const struct verb *verb);

#endif
