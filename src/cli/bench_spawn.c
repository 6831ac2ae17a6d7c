/* SPDX-License-Identifier: MIT */
#include "bench_spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bench_vm.h"

extern char **environ;

int bench_spawn(const char *const *argv, const char *cwd, const char *log,
                pid_t *out, struct qstill_error *err)
{
    posix_spawn_file_actions_t files;
    posix_spawnattr_t attr;
    sigset_t usual;
    int r;

    sigemptyset(&usual);
    sigaddset(&usual, SIGTSTP);
    sigaddset(&usual, SIGTTIN);
    sigaddset(&usual, SIGTTOU);
    posix_spawn_file_actions_init(&files);
    posix_spawnattr_init(&attr);
    /* A ^C is for us: we end them. */
    posix_spawnattr_setflags(&attr,
                             POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF);
    posix_spawnattr_setsigdefault(&attr, &usual);
    r = posix_spawn_file_actions_addchdir_np(&files, cwd);
    if (r == 0)
        r = posix_spawn_file_actions_addopen(&files, 0, "/dev/null", O_RDONLY,
                                             0);
    if (r == 0)
        r = posix_spawn_file_actions_addopen(
            &files, 1, log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (r == 0)
        r = posix_spawn_file_actions_adddup2(&files, 1, 2);
    if (r == 0)
        r = posix_spawnp(out, argv[0], &files, &attr, (char **)(uintptr_t)argv,
                         environ);
    posix_spawn_file_actions_destroy(&files);
    posix_spawnattr_destroy(&attr);
    if (r == 0)
        return 0;
    return cli_fail(err, r == ENOENT ? QSTILL_E_NOT_FOUND : QSTILL_E_FAILED,
                    "cannot start %s: %s", argv[0], strerror(r));
}

const char *bench_last_words(const char *cwd, const char *log, char out[200])
{
    char path[PATH_MAX + 32], line[200];
    FILE *f;

    snprintf(out, 200, "it said nothing");
    snprintf(path, sizeof(path), "%s/%s", cwd, log);
    f = fopen(path, "re");
    while (f && fgets(line, sizeof(line), f)) {
        line[strcspn(line, "\n")] = '\0';
        if (line[0])
            memcpy(out, line, sizeof(line));
    }
    if (f)
        fclose(f);
    return out;
}

int bench_run(const char *const *argv, const char *cwd,
              struct qstill_error *err)
{
    char words[200];
    int status = 0;
    pid_t pid;

    if (bench_spawn(argv, cwd, "words", &pid, err) < 0)
        return err->code;
    while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (status == 0)
        return 0;
    return cli_fail(err, QSTILL_E_FAILED, "%s %s: %s", argv[0],
                    argv[1] ? argv[1] : "",
                    bench_last_words(cwd, "words", words));
}

double bench_now_ms(void)
{
    struct timespec t;

    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec * 1e3 + (double)t.tv_nsec / 1e6;
}

void bench_sleep_ms(unsigned ms)
{
    struct timespec t = {ms / 1000, (long)(ms % 1000) * 1000000};

    nanosleep(&t, NULL);
}

int bench_folder(const char *dir, char out[PATH_MAX], struct qstill_error *err)
{
    char absolute[PATH_MAX];

    if (!realpath(dir, absolute) ||
        snprintf(out, PATH_MAX, "%s/qstill-bench.XXXXXX", absolute) >=
            PATH_MAX - 64 ||
        !mkdtemp(out)) {
        cli_fail(err,
                 errno == EACCES   ? QSTILL_E_PERMISSION
                 : errno == ENOENT ? QSTILL_E_NOT_FOUND
                                   : QSTILL_E_FAILED,
                 "--dir %s: %s", dir, strerror(errno));
        out[0] = '\0';
        return err->code;
    }
    return 0;
}

static int remove_one(const char *path, const struct stat *st, int type,
                      struct FTW *walk)
{
    (void)st;
    (void)type;
    (void)walk;
    remove(path);
    return 0;
}

void bench_folder_remove(const char *path)
{
    nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
}

void bench_fill(void *p, size_t length, uint64_t *seed)
{
    uint64_t *words = p, x = *seed;

    for (size_t i = 0; i < length / sizeof(x); i++) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        words[i] = x;
    }
    *seed = x;
}
