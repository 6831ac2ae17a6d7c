/* SPDX-License-Identifier: MIT */
/*
 * What a snapshot with memory must know of the host it was taken on: the CPU,
 * its clock, the kernel. Only read here; revert's preflight compares.
 */
#ifndef QSTILL_ENGINE_HOSTINFO_H
#define QSTILL_ENGINE_HOSTINFO_H

#include <stdbool.h>
#include <stdint.h>

#include "base/error.h"

enum { HOSTINFO_TEXT_MAX = 72, HOSTINFO_SUM_MAX = 40 };

struct hostinfo {
    char cpu_vendor[HOSTINFO_TEXT_MAX]; /* "GenuineIntel"; "" when unknown */
    char cpu_model[HOSTINFO_TEXT_MAX];  /* "model name" of /proc/cpuinfo */
    char microcode[HOSTINFO_TEXT_MAX];  /* "0x2007006"; "" when unknown */
    uint64_t tsc_khz;                   /* 0 when unknown */
    char kernel[HOSTINFO_TEXT_MAX];     /* uname release */
    char boot_id[HOSTINFO_TEXT_MAX];
    char hostname[HOSTINFO_TEXT_MAX];
};

/* What cannot be learnt stays empty; fails only when the host name or the
 * boot id cannot be read. */
int hostinfo_read(struct hostinfo *out, struct qstill_error *err);

/* Measures the TSC for 20 ms where nobody tells its frequency. */
void hostinfo_need_tsc(struct hostinfo *h);
/* Whether a guest's clock would not notice: as far apart as KVM itself lets
 * pass (tsc_tolerance_ppm). An unknown one is the same as any. */
#define HOSTINFO_TSC_PPM 250
bool hostinfo_same_tsc(uint64_t a_khz, uint64_t b_khz);

/* Only hostname, boot_id and kernel, which cost nothing to read. */
int hostinfo_read_names(struct hostinfo *out, struct qstill_error *err);

/* The CPU members from the text of /proc/cpuinfo (its first CPU). */
void hostinfo_parse_cpuinfo(struct hostinfo *out, const char *text);

/* The sum of a whole file as text ("xxh3:..."), to recognise a binary. */
int hostinfo_file_sum(const char *path, char out[HOSTINFO_SUM_MAX],
                      struct qstill_error *err);

#endif
