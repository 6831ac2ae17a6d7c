/* SPDX-License-Identifier: MIT */
#include "mem_tmpdir.h"

#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

int mem_tmpdir_make(char path[128])
{
    const char *base = getenv("TMPDIR");
    int fd;

    snprintf(path, 128, "%.100s/qstill-test.XXXXXX", base ? base : "/tmp");
    assert_non_null(mkdtemp(path));
    fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_true(fd >= 0);
    return fd;
}

static unsigned walk(int dirfd, int remove)
{
    int fd = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *d = fdopendir(fd);
    struct dirent *e;
    unsigned n = 0;

    assert_non_null(d);
    while ((e = readdir(d))) {
        if (strcmp(e->d_name, ".") == 0 || strcmp(e->d_name, "..") == 0)
            continue;
        n++;
        if (remove)
            unlinkat(dirfd, e->d_name, 0);
    }
    closedir(d);
    return n;
}

unsigned mem_tmpdir_count(int fd)
{
    return walk(fd, 0);
}

void mem_tmpdir_empty(int fd)
{
    walk(fd, 1);
}

void mem_tmpdir_remove(const char *path, int fd)
{
    walk(fd, 1);
    close(fd);
    assert_int_equal(rmdir(path), 0);
}
