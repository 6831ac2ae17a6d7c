/* SPDX-License-Identifier: MIT */
#include "temp_name.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "lock.h"

#define TOKEN_DIGITS 16
/* A long name would not fit with what is added. */
#define STEM_MAX 180

static const char *last_part(const char *path)
{
    const char *slash = strrchr(path, '/');

    return slash ? slash + 1 : path;
}

int temp_name_make(const char *path, const char *suffix, char **out,
                   struct qstill_error *err)
{
    const char *name = last_part(path);
    uint64_t token;

    if (getrandom(&token, sizeof(token), 0) != (ssize_t)sizeof(token))
        return err_errno(err, errno, "no random number");
    if (asprintf(out, "%.*s.%.*s.%0*" PRIx64 ".%s", (int)(name - path), path,
                 STEM_MAX, name, TOKEN_DIGITS, token, suffix) >= 0)
        return 0;
    *out = NULL;
    return err_nomem(err);
}

/* ".TOKEN.SUFFIX" at the end of a name, or NULL. */
static const char *find_tail(const char *name, const char *suffix)
{
    size_t n = strlen(name), tail = 1 + TOKEN_DIGITS + 1 + strlen(suffix);
    const char *at = name + n - tail;

    if (n <= tail || at[0] != '.' || at[1 + TOKEN_DIGITS] != '.' ||
        strspn(at + 1, "0123456789abcdef") != TOKEN_DIGITS ||
        strcmp(at + 1 + TOKEN_DIGITS + 1, suffix) != 0)
        return NULL;
    return at;
}

bool temp_name_is(const char *path, const char *suffix)
{
    const char *name = last_part(path);

    return name[0] == '.' && find_tail(name + 1, suffix);
}

static bool is_of(const char *temp, const char *name, const char *suffix)
{
    size_t stem = strnlen(name, STEM_MAX);
    const char *tail = temp[0] == '.' ? find_tail(temp + 1, suffix) : NULL;

    return tail && (size_t)(tail - temp - 1) == stem &&
           strncmp(temp + 1, name, stem) == 0;
}

static int sweep_one(const struct io *io, int dirfd, const char *name,
                     struct qstill_error *err)
{
    CLEANUP(closep) int fd = -1;
    struct stat now, st;

    if (io_openat(io, dirfd, name, O_RDWR | O_NOFOLLOW | O_NONBLOCK, 0, &fd,
                  err) < 0)
        return err->code == QSTILL_E_NOT_FOUND ? err_clear(err) : err->code;
    if (image_lock(fd, name, IMAGE_LOCK_WRITE, err) < 0)
        return err->code;
    if (fstat(fd, &st) < 0)
        return err_errno(err, errno, "cannot stat %s", name);
    if (fstatat(dirfd, name, &now, AT_SYMLINK_NOFOLLOW) < 0 ||
        now.st_dev != st.st_dev || now.st_ino != st.st_ino)
        return 0;
    return io_unlink(io, dirfd, name, err);
}

int temp_name_sweep(const struct io *io, int dirfd, const char *name,
                    const char *suffix, struct qstill_error *err)
{
    int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fd >= 0 ? fdopendir(fd) : NULL;
    const struct dirent *e;
    int r = 0;

    if (!d) {
        err_errno(err, errno, "cannot look for what was left of %s", name);
        closep(&fd);
        return err->code;
    }
    while (r == 0 && (e = readdir(d)) != NULL)
        if (is_of(e->d_name, name, suffix))
            r = sweep_one(io, dirfd, e->d_name, err);
    closedir(d);
    return r;
}
