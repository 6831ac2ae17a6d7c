/* SPDX-License-Identifier: MIT */
#include "ramfds.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/cleanup.h"
#include "memstate/inject.h"
#include "memstate/inject_status.h"
#include "memstate/procmem.h"
#include "memstate/ramset.h"
#include "qmp/monitor.h"
#include "session.h"

#define FD_NAME "qstill-saved-ram"
/* Of one file: QEMU opens it once for each backend. */
#define ROUNDS_MAX 16

/* What the process may do with its descriptor: O_RDONLY, O_RDWR, ...; -1 when
 * it is closed by now. */
static int access_of(int pid, int fd)
{
    char path[64], line[64];
    unsigned flags = 0;
    bool known = false;
    FILE *f;

    snprintf(path, sizeof(path), "/proc/%d/fdinfo/%d", pid, fd);
    f = fopen(path, "re");
    if (!f)
        return -1;
    while (!known && fgets(line, sizeof(line), f))
        known = sscanf(line, "flags: %o", &flags) == 1;
    fclose(f);
    return known ? (int)(flags & O_ACCMODE) : -1;
}

/* Descriptors of the process for the file: one that only reads, and one that
 * does more; -1 where there is none. */
static int find_fds(int pid, const struct stat *file, int *reader, int *writer,
                    struct qstill_error *err)
{
    const struct dirent *e;
    struct stat st;
    char path[64];
    DIR *dir;

    *reader = *writer = -1;
    snprintf(path, sizeof(path), "/proc/%d/fd", pid);
    dir = pid > 0 ? opendir(path) : NULL;
    if (!dir)
        return err_set(err, QSTILL_E_PERMISSION,
                       "the files that QEMU has open cannot be seen");
    while ((e = readdir(dir)) != NULL) {
        int fd = atoi(e->d_name), how;

        if (e->d_name[0] == '.' || fstatat(dirfd(dir), e->d_name, &st, 0) < 0 ||
            st.st_dev != file->st_dev || st.st_ino != file->st_ino)
            continue;
        how = access_of(pid, fd);
        if (how == O_RDONLY)
            *reader = fd;
        else if (how >= 0)
            *writer = fd;
    }
    closedir(dir);
    return 0;
}

/* Under the number of the one that writes: QEMU never sees that one closed. */
static int replace(int pid, int reader, int writer, struct qstill_error *err)
{
    struct inject_call call = {
        .name = "dup3",
        .nr = SYS_dup3,
        .args = {(unsigned long)reader, (unsigned long)writer, O_CLOEXEC},
        .number = true,
    };
    struct inject_result result;

    if (inject_fd(pid, &call, NULL, &result, err) < 0)
        return err->code;
    if (result.remote_errno)
        return err_errno(err, result.remote_errno,
                         "process %d cannot replace a descriptor", pid);
    return 0;
}

static int seal_file(struct session *s, int fd, const struct stat *file,
                     struct qstill_error *err)
{
    int reader, writer;

    if (find_fds(s->pid, file, &reader, &writer, err) < 0)
        return err->code;
    if (reader < 0 && writer < 0)
        return err_set(err, QSTILL_E_PRECONDITION,
                       "process %d, which answers for QEMU, does not have it "
                       "open",
                       s->pid);
    if (writer < 0)
        return 0;
    if (reader < 0 && qmp_getfd(s->qmp, FD_NAME, fd, err) < 0)
        return err->code;
    for (int i = 0; i < ROUNDS_MAX; i++) {
        if (find_fds(s->pid, file, &reader, &writer, err) < 0 || writer < 0)
            return err->code;
        if (reader < 0)
            break;
        if (replace(s->pid, reader, writer, err) < 0)
            return err->code;
    }
    return err_set(err, QSTILL_E_PRECONDITION,
                   "QEMU goes on opening the file for writing");
}

static int seal(struct session *s, const char *path, struct qstill_error *err)
{
    CLEANUP(closep) int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    struct qstill_error ignored = {0};
    struct stat file;

    if (fd < 0 || fstat(fd, &file) < 0)
        return err_errno(err, errno, "%s", path);
    seal_file(s, fd, &file, err);
    qmp_closefd(s->qmp, FD_NAME, &ignored);
    return err->code;
}

int ramfds_seal(struct session *s, const struct launch_ram *ram, size_t count,
                struct qstill_error *err)
{
    for (size_t i = 0; i < count; i++)
        if (seal(s, ram[i].path, err) < 0)
            return err_wrap(err,
                            "the saved RAM cannot be kept safe from the QEMU "
                            "that maps it: %s",
                            ram[i].path);
    return 0;
}

/* -------------------------------------------------------------------- check */

/* As QEMU does it, a page of it. */
static int check_mapping(const char *path, bool readonly,
                         struct qstill_error *err)
{
    CLEANUP(closep)
    int fd = open(path, (readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC);
    void *page;

    if (fd < 0 && errno == ENOENT)
        return 0; /* that is damage, which others tell */
    if (fd < 0)
        return err_errno(err, errno, "opening %s as QEMU does", path);
    page = mmap(NULL, RAMSET_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
    if (page == MAP_FAILED)
        return err_errno(err, errno, "mapping %s", path);
    munmap(page, RAMSET_PAGE);
    return 0;
}

/* Of a filter only the attempt tells what it allows: a call that does nothing
 * but fail. */
static int try_filter(int pid, struct qstill_error *err)
{
    struct inject_call call = {
        .name = "dup3",
        .nr = SYS_dup3,
        .args = {(unsigned long)-1, (unsigned long)-2, O_CLOEXEC},
        .number = true,
    };
    struct inject_result result;

    return inject_fd(pid, &call, NULL, &result, err);
}

static int check_process(int pid, struct qstill_error *err)
{
    CLEANUP(procmem_closep) struct procmem *mem = NULL;
    struct inject_status st;

    if (inject_status_untraced(pid, err) < 0 ||
        procmem_open(&mem, pid, err) < 0 ||
        inject_status_read(pid, pid, &st, err) < 0)
        return err->code;
    return st.seccomp ? try_filter(pid, err) : 0;
}

int ramfds_check(struct session *s, const struct launch_ram *ram, size_t count,
                 bool readonly, struct qstill_error *err)
{
    for (size_t i = 0; i < count; i++)
        if (check_mapping(ram[i].path, readonly, err) < 0)
            return err->code;
    if (readonly || s->pid <= 0 || check_process(s->pid, err) == 0)
        return 0;
    return err_wrap(err, "the saved RAM cannot be kept safe from the QEMU that "
                         "maps it");
}
