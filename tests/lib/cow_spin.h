/* SPDX-License-Identifier: MIT */
/*
 * One thread whose whole register state is known: general registers, flags,
 * x87, MXCSR, SSE/AVX/AVX-512 where the CPU has it, and the red zone.
 */
#ifndef QSTILL_TESTS_COW_SPIN_H
#define QSTILL_TESTS_COW_SPIN_H

#include <stdint.h>

/* Loads all of it, looks at the general registers and the red zone `rounds`
 * times, and at the rest at the end. 0, or which part was not the same. */
int cow_spin(uint64_t rounds);

#endif
