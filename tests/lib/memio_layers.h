/* SPDX-License-Identifier: MIT */
/*
 * Several files in one fuzzer input: a byte whose lowest two bits are their
 * number less one, that many big-endian 32-bit lengths, then their bytes;
 * lengths are cut to what there is. They become l0 (the top), l1 and l2 of a
 * directory.
 */
#ifndef TESTS_MEMIO_LAYERS_H
#define TESTS_MEMIO_LAYERS_H

#include <stddef.h>
#include <stdint.h>

#define MEMIO_MAX_LAYERS 3u

/* A directory that lasts as long as the process, emptied by each call. */
const char *memio_layers_dir(void);
/* Writes the files; how many there are. */
unsigned memio_layers_put(const uint8_t *data, size_t size);

#endif
