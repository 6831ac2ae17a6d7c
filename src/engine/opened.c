/* SPDX-License-Identifier: MIT */
#include "opened.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cleanup.h"

static int add(struct opened *o, size_t *room, const struct stat *st,
               struct qstill_error *err)
{
    struct opened_file *more;

    if (o->count == *room) {
        *room = *room ? 2 * *room : 64;
        more = reallocarray(o->files, *room, sizeof(*more));
        if (!more)
            return err_nomem(err);
        o->files = more;
    }
    o->files[o->count++] = (struct opened_file){st->st_dev, st->st_ino};
    return 0;
}

int opened_read(struct opened *o, int pid, struct qstill_error *err)
{
    char path[64];
    struct dirent *e;
    struct stat st;
    size_t room = 0;
    DIR *dir;
    int r = 0;

    *o = (struct opened){0};
    snprintf(path, sizeof(path), "/proc/%d/fd", pid);
    dir = pid > 0 ? opendir(path) : NULL;
    if (!dir)
        return 0;
    o->known = true;
    while (r == 0 && (e = readdir(dir)) != NULL) {
        if (fstatat(dirfd(dir), e->d_name, &st, 0) == 0)
            r = S_ISREG(st.st_mode) ? add(o, &room, &st, err) : 0;
        else if (errno != ENOENT) /* the list can be had, but not the files */
            o->known = false;
    }
    closedir(dir);
    return r;
}

void opened_fini(struct opened *o)
{
    free(o->files);
    *o = (struct opened){0};
}

bool opened_has(const struct opened *o, const char *path)
{
    struct stat st;

    if (stat(path, &st) < 0)
        return false;
    for (size_t i = 0; i < o->count; i++)
        if (o->files[i].dev == st.st_dev && o->files[i].ino == st.st_ino)
            return true;
    return false;
}

int opened_by(const char *path, int except)
{
    const struct dirent *e;
    DIR *proc = opendir("/proc");
    int found = 0;

    while (proc && !found && (e = readdir(proc)) != NULL) {
        CLEANUP(opened_fini) struct opened o = {0};
        struct qstill_error ignored = {0};
        int pid = atoi(e->d_name);

        if (pid > 0 && pid != getpid() && pid != except &&
            opened_read(&o, pid, &ignored) == 0 && opened_has(&o, path))
            found = pid;
    }
    if (proc)
        closedir(proc);
    return found;
}

void opened_describe(int pid, char *out, size_t size)
{
    CLEANUP(closep) int fd = -1;
    char path[64], name[32];
    ssize_t n;

    if (pid <= 0) {
        snprintf(out, size, "what has it open");
        return;
    }
    snprintf(path, sizeof(path), "/proc/%d/comm", pid);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    n = fd >= 0 ? read(fd, name, sizeof(name) - 1) : 0;
    if (n <= 1)
        n = snprintf(name, sizeof(name), "?") + 1; /* it is gone */
    name[n - 1] = '\0';
    snprintf(out, size, "process %d (%s)", pid, name);
}

static bool has_argument(int pid, const char *name)
{
    CLEANUP(freep) char *word = NULL;
    size_t room = 0, dashes;
    bool has = false;
    char path[64];
    FILE *line;

    snprintf(path, sizeof(path), "/proc/%d/cmdline", pid);
    line = fopen(path, "re");
    if (!line)
        return false; /* it has ended */
    while (!has && getdelim(&word, &room, '\0', line) > 0) {
        dashes = strspn(word, "-");
        has = (dashes == 1 || dashes == 2) && strcmp(word + dashes, name) == 0;
    }
    fclose(line);
    return has;
}

int opened_next(int pid, const char *name)
{
    const struct dirent *e;
    DIR *proc = opendir("/proc");
    int found = 0;

    while (proc && (e = readdir(proc)) != NULL) {
        int p = atoi(e->d_name);

        if (p > pid && (!found || p < found) && has_argument(p, name))
            found = p;
    }
    if (proc)
        closedir(proc);
    return found;
}
