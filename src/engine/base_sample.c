/* SPDX-License-Identifier: MIT */
#include "base_sample.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <sys/stat.h>

#include "base/file.h"
#include "base/sum.h"

enum { PIECE = 64 << 10, SMALL = 4 << 10, SMALL_COUNT = 16 };

struct sample {
    int fd;
    uint64_t sum;
    unsigned char bytes[PIECE];
};

static int add(struct sample *s, uint64_t at, size_t len,
               struct qstill_error *err)
{
    size_t n;

    if (file_read_upto(s->fd, s->bytes, len, at, &n, err) < 0)
        return err->code;
    s->sum = sum_bytes(s->bytes, n, s->sum);
    return 0;
}

int base_sample(const char *path, char out[BASE_SAMPLE_LEN],
                struct qstill_error *err)
{
    CLEANUP(closep)
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
    struct sample s = {.fd = fd};
    uint64_t size;
    struct stat st;

    if (fd < 0 || fstat(fd, &st) < 0)
        return err_errno(err, errno, "cannot read %s", path);
    size = (uint64_t)st.st_size;
    if (add(&s, 0, PIECE, err) < 0 || add(&s, 1 << 20, PIECE, err) < 0 ||
        add(&s, size > PIECE ? size - PIECE : 0, PIECE, err) < 0)
        return err_wrap(err, "%s", path);
    for (uint64_t i = 1; i <= SMALL_COUNT; i++)
        if (add(&s, size / (SMALL_COUNT + 1) * i, SMALL, err) < 0)
            return err_wrap(err, "%s", path);
    snprintf(out, BASE_SAMPLE_LEN, "%016" PRIx64, s.sum);
    return 0;
}
