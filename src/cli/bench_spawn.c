/* SPDX-License-Identifier: MIT */
#include "bench_spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "bench_vm.h"

/* Between fork and exec only what is safe there. Returns when it failed. */
static void become(const char *const *argv, const char *cwd, const char *log,
                   pid_t parent)
{
    static const int usual[] = {SIGTSTP, SIGTTIN, SIGTTOU, SIGXFSZ};
    int in, out;

    /* Whatever ends us ends it: a SIGKILL leaves nobody else to do it. */
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) < 0)
        return;
    if (getppid() != parent)
        _exit(1);
    for (size_t i = 0; i < sizeof(usual) / sizeof(usual[0]); i++)
        signal(usual[i], SIG_DFL);
    /* A ^C is for us: we end them. */
    if (setpgid(0, 0) < 0 || chdir(cwd) < 0)
        return;
    in = open("/dev/null", O_RDONLY);
    out = open(log, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (in < 0 || out < 0 || dup2(in, 0) < 0 || dup2(out, 1) < 0 ||
        dup2(out, 2) < 0)
        return;
    if (in > 2)
        close(in);
    if (out > 2)
        close(out);
    execvp(argv[0], (char **)(uintptr_t)argv);
}

/* What stopped the child before it was the program; 0 when nothing did. */
static int wait_for_exec(int fd)
{
    int failed = 0;
    ssize_t n;

    while ((n = read(fd, &failed, sizeof(failed))) < 0 && errno == EINTR)
        ;
    return n == (ssize_t)sizeof(failed) ? failed : 0;
}

int bench_spawn(const char *const *argv, const char *cwd, const char *log,
                pid_t *out, struct qstill_error *err)
{
    pid_t parent = getpid(), pid;
    int report[2], r;

    if (pipe2(report, O_CLOEXEC) < 0)
        return cli_fail(err, QSTILL_E_FAILED, "no pipe: %s", strerror(errno));
    pid = fork();
    if (pid == 0) {
        become(argv, cwd, log, parent);
        r = errno;
        _exit(write(report[1], &r, sizeof(r)) == (ssize_t)sizeof(r) ? 127
                                                                    : 126);
    }
    r = pid < 0 ? errno : 0;
    close(report[1]);
    if (pid > 0)
        r = wait_for_exec(report[0]);
    close(report[0]);
    if (r == 0) {
        *out = pid;
        return 0;
    }
    if (pid > 0)
        waitpid(pid, NULL, 0);
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
