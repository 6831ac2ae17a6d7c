/* SPDX-License-Identifier: MIT */
/*
 * A sum of some pieces of a file: of raw ones, which have no header that tells
 * one from another. Its begin, what is behind its first MiB (most first
 * partitions), its end, and pieces between; so it finds another file, and not
 * each change of one.
 */
#ifndef QSTILL_ENGINE_BASE_SAMPLE_H
#define QSTILL_ENGINE_BASE_SAMPLE_H

#include "base/error.h"

#define BASE_SAMPLE_LEN 17

/* 16 hexadecimal digits; reads less than 300 KiB. */
int base_sample(const char *path, char out[BASE_SAMPLE_LEN],
                struct qstill_error *err);

#endif
