/* SPDX-License-Identifier: MIT */
/* The instructions of the target that the detour makes use of. */
#include "inject_arch.h"

#if !defined(__x86_64__)
#error "the injection knows x86-64 only: write an inject_ARCH_code.c"
#endif

#include <stddef.h>
#include <string.h>
#include <sys/uio.h>

#include "base/checked.h"
#include "memstate/regions.h"

static bool read_target(pid_t tid, uint64_t addr, void *data, size_t len)
{
    struct iovec here = {data, len};
    struct iovec there = {(void *)(uintptr_t)addr, len};

    return process_vm_readv(tid, &here, 1, &there, 1, 0) == (ssize_t)len;
}

#define SEARCH_PIECE (1u << 20)
#define SEARCH_MAX   ((uint64_t)64 << 20) /* of one mapping */
#define PATTERN_MAX  16u

static const struct pattern {
    size_t field;
    size_t len;
    uint8_t bytes[PATTERN_MAX];
} patterns[] = {
    {offsetof(struct inject_code, syscall_ret), 3, {0x0f, 0x05, 0xc3}},
    {offsetof(struct inject_code, sigreturn),
     9,
     {0x48, 0xc7, 0xc0, 0x0f, 0, 0, 0, 0x0f, 0x05}},
    {offsetof(struct inject_code, sigreturn),
     7,
     {0xb8, 0x0f, 0, 0, 0, 0x0f, 0x05}},
};

static bool code_complete(const struct inject_code *code)
{
    return code->syscall_ret && code->sigreturn;
}

static void search_piece(const uint8_t *data, size_t len, uint64_t at,
                         struct inject_code *code)
{
    for (size_t i = 0; i < ARRAY_LEN(patterns); i++) {
        const struct pattern *p = &patterns[i];
        uint64_t *field = (uint64_t *)(void *)((char *)code + p->field);
        const uint8_t *hit;

        if (*field)
            continue;
        hit = memmem(data, len, p->bytes, p->len);
        if (hit)
            *field = at + (uint64_t)(hit - data);
    }
}

static void search_region(pid_t pid, const struct region *r, uint8_t *piece,
                          struct inject_code *code)
{
    uint64_t end = min_u64(r->end, r->start + SEARCH_MAX);

    for (uint64_t at = r->start; at < end && !code_complete(code);
         at += SEARCH_PIECE - PATTERN_MAX) {
        size_t len = (size_t)min_u64(SEARCH_PIECE, end - at);

        if (!read_target(pid, at, piece, len))
            return;
        search_piece(piece, len, at, code);
        if (len < SEARCH_PIECE)
            return;
    }
}

static bool is_libc(const struct region *r)
{
    return memmem(r->path, r->path_len, "/libc", 5) ||
           memmem(r->path, r->path_len, "/ld-musl", 8);
}

int inject_find_code(pid_t pid, struct inject_code *out,
                     struct qstill_error *err)
{
    CLEANUP(freep) uint8_t *piece = malloc(SEARCH_PIECE);
    CLEANUP(buf_fini) struct buf maps = BUF_INIT;
    struct inject_code code = {0, 0};
    struct region r;

    if (!piece)
        return err_nomem(err);
    if (regions_read(pid, &maps, err) < 0)
        return err->code;
    for (int libc = 1; libc >= 0 && !code_complete(&code); libc--) {
        size_t pos = 0;

        while (regions_next(&maps, &pos, &r))
            if (r.executable && r.readable && !r.shared &&
                is_libc(&r) == (libc == 1))
                search_region(pid, &r, piece, &code);
    }
    if (!code_complete(&code))
        return err_set(err, QSTILL_E_PRECONDITION,
                       "process %d has no code to make a system call with",
                       pid);
    *out = code;
    return 0;
}
