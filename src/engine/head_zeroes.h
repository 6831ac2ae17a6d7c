/* SPDX-License-Identifier: MIT */
/*
 * detect-zeroes is not handed on: an overlay that QEMU makes itself has it off,
 * and so has the image that a head was folded into.
 */
#ifndef QSTILL_ENGINE_HEAD_ZEROES_H
#define QSTILL_ENGINE_HEAD_ZEROES_H

struct session;

/* Gives the heads of a running VM what its command line says. Where QEMU cannot
 * do that, a note says so. */
void head_zeroes_keep(struct session *s);

#endif
