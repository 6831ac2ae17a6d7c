/* SPDX-License-Identifier: MIT */
/*
 * Running a job in the foreground. The first SIGINT, SIGTERM or SIGHUP asks
 * the job to stop; it undoes what it did, and the verb fails with CANCELLED.
 * More signals ask the same again: the undo is never cut short.
 */
#include "run.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "progress.h"
#include "say.h"
#include "text.h"

/* What a signal handler can reach must be static. */
static struct qstill_job *_Atomic running_job;
static volatile sig_atomic_t cancel_asked;
static volatile sig_atomic_t silent;
static volatile sig_atomic_t on_terminal;

static void on_cancel(int signal_number)
{
    static const char text[] = "\nqstill: cancelling, and undoing what was "
                               "begun\n";
    size_t skip = on_terminal ? 0 : 1; /* the echoed ^C stands on the line */
    struct qstill_job *job = atomic_load(&running_job);
    int saved = errno;

    (void)signal_number;
    if (!cancel_asked && !silent && say_is_writable() &&
        write(STDERR_FILENO, text + skip, sizeof(text) - 1 - skip) < 0)
        silent = 1;
    cancel_asked = 1;
    if (job)
        qstill_job_cancel(job);
    errno = saved;
}

void run_prepare(const struct cli *cli)
{
    static const int cancelling[] = {SIGINT, SIGTERM, SIGHUP};
    static const int ignored[] = {SIGTSTP, SIGTTIN, SIGTTOU};
    struct sigaction act = {.sa_handler = on_cancel, .sa_flags = SA_RESTART};
    struct sigaction old;

    silent = cli->quiet;
    on_terminal = isatty(STDERR_FILENO);
    for (size_t i = 0; i < ARRAY_LEN(cancelling); i++)
        sigaddset(&act.sa_mask, cancelling[i]);
    for (size_t i = 0; i < ARRAY_LEN(cancelling); i++) {
        /* Left ignored is what nohup set; not what a shell without job control
         * does to SIGINT: there, too, a cancel is better than no way out. */
        if (cancelling[i] == SIGHUP && sigaction(SIGHUP, NULL, &old) == 0 &&
            old.sa_handler == SIG_IGN)
            continue;
        sigaction(cancelling[i], &act, NULL);
    }
    for (size_t i = 0; i < ARRAY_LEN(ignored); i++)
        signal(ignored[i], SIG_IGN);
}

/* What a failed job has to say beyond its error, such as an undo that did not
 * succeed either. */
static void print_account(const struct cli *cli, const struct qstill_job *job)
{
    const char *text = qstill_job_text(job);

    while (*text) {
        size_t n = strcspn(text, "\n");

        fprintf(stderr, "qstill: %s: ", cli->verb->name);
        text_safe_n(stderr, text, n);
        fputc('\n', stderr);
        text += n + (text[n] == '\n');
    }
}

int run_job(struct cli *cli, struct qstill_job *job, struct qstill_error *err)
{
    struct progress progress;
    int r;

    cli->say = say_open();
    progress_init(&progress, cli);
    atomic_store(&running_job, job);
    if (cancel_asked)
        qstill_job_cancel(job);
    r = qstill_job_run(job, progress_tick, &progress, err);
    atomic_store(&running_job, NULL);
    progress_end(&progress);
    say_close(cli->say);
    cli->say = stderr;
    if (r < 0)
        print_account(cli, job);
    return r;
}

int run_cancelled(struct qstill_error *err)
{
    return cancel_asked ? cli_fail(err, QSTILL_E_CANCELLED, "cancelled") : 0;
}

void run_job_freep(struct qstill_job **job)
{
    qstill_job_free(*job);
    *job = NULL;
}
