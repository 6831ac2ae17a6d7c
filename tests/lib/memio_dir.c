/* SPDX-License-Identifier: MIT */
#include "memio_dir.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"

#define BLOCK 4096u

void memio_die(const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vfprintf(stderr, fmt, ap);
    va_end(ap);
    fputc('\n', stderr);
    abort();
}

char *memio_dir_new(void)
{
    const char *root = getenv("QCOW2_TMP");
    char *dir = NULL;

    if (!root)
        root = access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp";
    if (asprintf(&dir, "%s/qstill-test-XXXXXX", root) < 0 || !mkdtemp(dir))
        memio_die("no scratch directory below %s: %s", root, strerror(errno));
    return dir;
}

static int remove_entry(const char *path, const struct stat *st, int type,
                        struct FTW *ftw)
{
    (void)st;
    (void)type;
    (void)ftw;
    return remove(path);
}

void memio_dir_remove(char *dir)
{
    if (dir)
        nftw(dir, remove_entry, 16, FTW_DEPTH | FTW_PHYS);
    free(dir);
}

static int remove_below(const char *path, const struct stat *st, int type,
                        struct FTW *ftw)
{
    (void)st;
    (void)type;
    return ftw->level == 0 ? 0 : remove(path);
}

void memio_dir_empty(const char *dir)
{
    nftw(dir, remove_below, 16, FTW_DEPTH | FTW_PHYS);
}

const char *memio_path(const char *dir, const char *name)
{
    static _Thread_local char ring[8][4096];
    static _Thread_local unsigned at;
    char *p = ring[at++ % ARRAY_LEN(ring)];

    snprintf(p, sizeof(ring[0]), "%s/%s", dir, name);
    return p;
}

/* Blocks of zeros are holes, as those are that nobody wrote. */
void memio_put(const char *path, const void *data, size_t len)
{
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    const uint8_t *bytes = data;
    size_t done = 0;

    while (fd >= 0 && done < len) {
        size_t want = min_u64(BLOCK, len - done);
        ssize_t n = (ssize_t)want;

        if (!bytes_are_zero(bytes + done, want))
            n = pwrite(fd, bytes + done, want, (off_t)done);
        if (n <= 0)
            memio_die("cannot write %s: %s", path, strerror(errno));
        done += (size_t)n;
    }
    if (fd < 0 || ftruncate(fd, (off_t)len) < 0 || close(fd) < 0)
        memio_die("cannot make %s: %s", path, strerror(errno));
}

uint8_t *memio_get(const char *path, size_t *len)
{
    CLEANUP(closep) int fd = open(path, O_RDONLY | O_CLOEXEC);
    uint8_t *data;
    struct stat st;

    if (fd < 0 && errno == ENOENT)
        return NULL;
    if (fd < 0 || fstat(fd, &st) < 0)
        memio_die("cannot open %s: %s", path, strerror(errno));
    data = malloc((size_t)st.st_size + 1);
    if (!data || pread(fd, data, (size_t)st.st_size, 0) != st.st_size)
        memio_die("cannot read %s", path);
    *len = (size_t)st.st_size;
    return data;
}

/* nftw() has no user pointer. */
static _Thread_local struct {
    size_t skip;
    void (*fn)(void *user, const char *relative);
    void *user;
} each;

static int each_entry(const char *path, const struct stat *st, int type,
                      struct FTW *ftw)
{
    (void)ftw;
    if (type == FTW_F && S_ISREG(st->st_mode))
        each.fn(each.user, path + each.skip);
    return 0;
}

void memio_each(const char *dir, void (*fn)(void *user, const char *relative),
                void *user)
{
    each.skip = strlen(dir) + 1;
    each.fn = fn;
    each.user = user;
    nftw(dir, each_entry, 16, FTW_PHYS);
}
