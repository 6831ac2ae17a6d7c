/* SPDX-License-Identifier: MIT */
#include "cow_spin.h"

#include <stdbool.h>
#include <string.h>

#define VECTORS 32

struct spin_state {
    uint64_t rounds;             /* 0 */
    uint64_t failed;             /* 8 */
    uint64_t saved_rsp;          /* 16 */
    uint32_t mxcsr, mxcsr_saved; /* 24, 28 */
    double x87_in, x87_out;      /* 32, 40 */
    uint64_t flags;              /* 48 */
    uint64_t pad;                /* 56 */
    uint8_t in[VECTORS][64];     /* 64 */
    uint8_t out[VECTORS][64];    /* 2112 */
    uint64_t mask_in[8];         /* 4160 */
    uint64_t mask_out[8];        /* 4224 */
} __attribute__((aligned(64)));

/* Loops over the general registers; *state in rdi. Uses no vectors. */
void cow_spin_loop(struct spin_state *state);

#define K(n) "0x5a5a0000" n n n n

__asm__(
    ".text\n"
    ".globl cow_spin_loop\n"
    ".type cow_spin_loop, @function\n"
    "cow_spin_loop:\n"
    "  push %rbx; push %rbp; push %r12; push %r13; push %r14; push %r15\n"
    "  movabs $" K(
        "11") ", %rax\n"
              "  movabs $" K(
                  "22") ", %rbx\n"
                        "  movabs $" K(
                            "33") ", %rcx\n"
                                  "  movabs $" K(
                                      "44") ", %rdx\n"
                                            "  movabs $" K(
                                                "55") ", %rsi\n"
                                                      "  movabs $" K(
                                                          "66") ", "
                                                                "%rb"
                                                                "p\n"
                                                                "  "
                                                                "mov"
                                                                "abs"
                                                                " "
                                                                "$" K(
                                                                    "77") ", "
                                                                          "%r8"
                                                                          "\n"
                                                                          "  "
                                                                          "mova"
                                                                          "bs "
                                                                          "$" K(
                                                                              "88") ", %r9\n"
                                                                                    "  movabs $" K(
                                                                                        "99") ", %r10\n"
                                                                                              "  movabs $" K(
                                                                                                  "aa") ", %r11\n"
                                                                                                        "  movabs $" K("bb") ", %r12\n"
                                                                                                                             "  movabs $" K("cc") ", %r13\n"
                                                                                                                                                  "  movabs $" K("dd") ", %r14\n"
                                                                                                                                                                       "  movabs $" K("ee") ", %r15\n"
                                                                                                                                                                                            "  mov %rsp, 16(%rdi)\n"
                                                                                                                                                                                            "  mov %rax, -8(%rsp); mov %rbx, -64(%rsp); mov %rcx, -128(%rsp)\n"
                                                                                                                                                                                            "1:\n"
                                                                                                                                                                                            "  cmp %rsp, 16(%rdi); jne 9f\n"
                                                                                                                                                                                            "  cmp %rax, -8(%rsp); jne 9f\n"
                                                                                                                                                                                            "  cmp %rbx, -64(%rsp); jne 9f\n"
                                                                                                                                                                                            "  cmp %rcx, -128(%rsp); jne 9f\n"
                                                                                                                                                                                            /* Everything in relation to each other, then one to its constant. */
                                                                                                                                                                                            "  stc\n"
                                                                                                                                                                                            "  jnc 9f\n"
                                                                                                                                                                                            "  nop; nop; nop; nop\n"
                                                                                                                                                                                            "  jnc 9f\n"
                                                                                                                                                                                            "  cmpq %rax, .Lcow_k(%rip); jne 9f\n"
                                                                                                                                                                                            "  cmpq %rbx, .Lcow_k+8(%rip); jne 9f\n"
                                                                                                                                                                                            "  cmpq %rcx, .Lcow_k+16(%rip); jne 9f\n"
                                                                                                                                                                                            "  cmpq %rdx, .Lcow_k+24(%rip); jne 9f\n"
                                                                                                                                                                                            "  cmpq %rsi, .Lcow_k+32(%rip); jne 9f\n"
                                                                                                                                                                                            "  cmpq %rbp, .Lcow_k+40(%rip); jne 9f\n"
                                                                                                                                                                                            "  cmpq %r8, .Lcow_k+48(%rip); jne 9f\n"
                                                                                                                                                                                            "  cmpq %r9, .Lcow_k+56(%rip); jne 9f\n"
                                                                                                                                                                                            "  cmpq %r10, .Lcow_k+64(%rip); jne 9f\n"
                                                                                                                                                                                            "  cmpq %r11, .Lcow_k+72(%rip); jne 9f\n"
                                                                                                                                                                                            "  cmpq %r12, .Lcow_k+80(%rip); jne 9f\n"
                                                                                                                                                                                            "  cmpq %r13, .Lcow_k+88(%rip); jne 9f\n"
                                                                                                                                                                                            "  cmpq %r14, .Lcow_k+96(%rip); jne 9f\n"
                                                                                                                                                                                            "  cmpq %r15, .Lcow_k+104(%rip); jne 9f\n"
                                                                                                                                                                                            "  decq (%rdi)\n"
                                                                                                                                                                                            "  jnz 1b\n"
                                                                                                                                                                                            "  jmp 8f\n"
                                                                                                                                                                                            "9: movq $1, 8(%rdi)\n"
                                                                                                                                                                                            "8: mov 16(%rdi), %rsp\n"
                                                                                                                                                                                            "  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbp; pop %rbx\n"
                                                                                                                                                                                            "  ret\n"
                                                                                                                                                                                            ".section .rodata\n"
                                                                                                                                                                                            ".balign 16\n"
                                                                                                                                                                                            ".Lcow_k: .quad " K("11") "," K("22") "," K(
                                                                                                                                                                                                "33") "," K("44") "," K("55") "," K("66") "," K("77") "," K("88") "," K("99") "," K("aa") "," K("bb") "," K("cc") "," K("dd") "," K("ee") "\n"
                                                                                                                                                                                                                                                                                                                                          ".previous\n");

/* The vectors are loaded, kept over the loop and stored again by one asm
 * statement each, so that the compiler cannot use them between. */
#define SPIN_CALL                                                              \
    "  fldl 32(%%rdi)\n"                                                       \
    "  stmxcsr 28(%%rdi); ldmxcsr 24(%%rdi)\n"                                 \
    "  push %%rdi; sub $136, %%rsp\n"                                          \
    "  call cow_spin_loop\n"                                                   \
    "  add $136, %%rsp; pop %%rdi\n"                                           \
    "  stmxcsr 24(%%rdi); ldmxcsr 28(%%rdi)\n"                                 \
    "  fstpl 40(%%rdi)\n"
#define CLOBBERS                                                               \
    "rax", "rcx", "rdx", "rsi", "r8", "r9", "r10", "r11", "memory", "cc"

static void spin_sse(struct spin_state *s)
{
    __asm__ volatile(".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
                     "  movups 64+64*\\i(%%rdi), %%xmm\\i\n"
                     ".endr\n" SPIN_CALL
                     ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
                     "  movups %%xmm\\i, 2112+64*\\i(%%rdi)\n"
                     ".endr\n"
                     : "+D"(s)
                     :
                     : CLOBBERS, "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5",
                       "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
                       "xmm12", "xmm13", "xmm14", "xmm15");
}

static void spin_avx(struct spin_state *s)
{
    __asm__ volatile(".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
                     "  vmovups 64+64*\\i(%%rdi), %%ymm\\i\n"
                     ".endr\n" SPIN_CALL
                     ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15\n"
                     "  vmovups %%ymm\\i, 2112+64*\\i(%%rdi)\n"
                     ".endr\n"
                     "  vzeroupper\n"
                     : "+D"(s)
                     :
                     : CLOBBERS, "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5",
                       "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11",
                       "xmm12", "xmm13", "xmm14", "xmm15");
}

#define ALL32                                                                  \
    ".irp i,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,"    \
    "24,25,26,27,28,29,30,31\n"

__attribute__((target("avx512f,avx512bw"))) static void
spin_avx512(struct spin_state *s)
{
    __asm__ volatile(
        ALL32 "  vmovups 64+64*\\i(%%rdi), %%zmm\\i\n"
              ".endr\n"
              ".irp i,1,2,3,4,5,6,7\n"
              "  kmovq 4160+8*\\i(%%rdi), %%k\\i\n"
              ".endr\n" SPIN_CALL ALL32
              "  vmovups %%zmm\\i, 2112+64*\\i(%%rdi)\n"
              ".endr\n"
              ".irp i,1,2,3,4,5,6,7\n"
              "  kmovq %%k\\i, 4224+8*\\i(%%rdi)\n"
              ".endr\n"
              "  vzeroupper\n"
        : "+D"(s)
        :
        : CLOBBERS, "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6",
          "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14",
          "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21",
          "xmm22", "xmm23", "xmm24", "xmm25", "xmm26", "xmm27", "xmm28",
          "xmm29", "xmm30", "xmm31", "k1", "k2", "k3", "k4", "k5", "k6", "k7");
}

static bool vectors_same(const struct spin_state *s, int count, size_t bytes)
{
    for (int i = 0; i < count; i++)
        if (memcmp(s->in[i], s->out[i], bytes) != 0)
            return false;
    return true;
}

static int spin_vectors(struct spin_state *s)
{
    if (__builtin_cpu_supports("avx512bw")) {
        spin_avx512(s);
        if (memcmp(s->mask_in + 1, s->mask_out + 1, 56) != 0)
            return 2;
        return vectors_same(s, 32, 64) ? 0 : 3;
    }
    if (__builtin_cpu_supports("avx")) {
        spin_avx(s);
        return vectors_same(s, 16, 32) ? 0 : 4;
    }
    spin_sse(s);
    return vectors_same(s, 16, 16) ? 0 : 5;
}

int cow_spin(uint64_t rounds)
{
    struct spin_state s;
    uint8_t *in = &s.in[0][0];
    int r;

    memset(&s, 0, sizeof(s));
    for (size_t i = 0; i < sizeof(s.in); i++)
        in[i] = (uint8_t)(i * 7 + i / 256 + 1);
    for (int i = 0; i < 8; i++)
        s.mask_in[i] = 0x0101010101010101u * (unsigned)(i + 1);
    s.rounds = rounds;
    s.x87_in = 3.14159;
    s.mxcsr = 0x7f80; /* round towards zero */
    r = spin_vectors(&s);
    if (s.failed)
        return 1;
    if (r)
        return r;
    if (s.x87_out != s.x87_in)
        return 6;
    /* The low six bits are exceptions seen; none is raised here. */
    return s.mxcsr == 0x7f80 ? 0 : 7;
}
