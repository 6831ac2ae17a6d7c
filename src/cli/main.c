/* SPDX-License-Identifier: MIT */
/*
 * qstill: the command. Parses, runs one verb, tells the error, exits with the
 * status of its class (the negative of enum qstill_code). Everything it can do
 * it does through include/, as any program could.
 */
#include "cli.h"

#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "args.h"
#include "output.h"
#include "text.h"
#include "usage.h"

static void print_error(const struct cli *cli, const struct qstill_error *err)
{
    fprintf(stderr, "qstill: %s%s", cli->verb ? cli->verb->name : "",
            cli->verb ? ": " : "");
    text_safe(stderr, err->message);
    fputc('\n', stderr);
    if (err->hint[0]) {
        fputs("hint: ", stderr);
        text_safe(stderr, err->hint);
        fputc('\n', stderr);
    }
    if (cli->json) {
        struct out o = OUT_INIT(stdout);

        out_object(&o, NULL);
        out_object(&o, "error");
        out_text(&o, "code", qstill_code_name(err->code));
        out_text(&o, "message", err->message);
        out_text(&o, "hint", err->hint);
        out_end(&o);
        out_end(&o);
    }
}

/* The exit status of an error's class, with which scripts tell them apart. */
static int status_of(const struct cli *cli, int code)
{
    if (code != QSTILL_E_FAILED && code < 0)
        return -code;
    return cli->verb && cli->verb->failed ? cli->verb->failed
                                          : -QSTILL_E_FAILED;
}

/* What was printed must have arrived: a full disk behind ">" is a failure; a
 * reader that has gone away ("| head") is one without words. */
static int flush_output(const struct cli *cli, int status)
{
    struct qstill_error err = {0};

    errno = 0;
    if (fflush(stdout) == 0 && !ferror(stdout))
        return status;
    if (errno != EPIPE && status == 0) {
        struct cli quiet = *cli;

        quiet.json = false;
        cli_fail(&err, errno == ENOSPC ? QSTILL_E_NO_SPACE : QSTILL_E_FAILED,
                 "writing to standard output: %s (the command itself was "
                 "done)",
                 strerror(errno));
        print_error(&quiet, &err);
        return status_of(cli, err.code);
    }
    return status ? status : status_of(cli, QSTILL_E_FAILED);
}

/* Descriptors 0 to 2 must exist, or the store's files would get their numbers
 * and be printed into. Who writes to one that was closed gets an error, as if
 * it still were. */
static int open_standard_fds(void)
{
    int fd;

    do
        fd = open("/dev/null", O_RDONLY | O_CLOEXEC);
    while (fd >= 0 && fd <= 2);
    if (fd < 0)
        return -1;
    close(fd);
    return 0;
}

static int run(struct cli *cli, int argc, char **argv, struct qstill_error *err)
{
    struct args args;
    int r = args_parse(&args, cli, argc, argv, err);

    if (r < 0)
        return r;
    if (cli->version)
        printf("qstill %s\n", qstill_version());
    else if (cli->help && cli->verb)
        usage_verb(stdout, cli->verb);
    else if (cli->help)
        usage_all(stdout);
    else
        r = cli->verb->run(cli, &args, err);
    args_fini(&args);
    qstill_store_close(cli->store);
    cli->store = NULL;
    return r;
}

int main(int argc, char **argv)
{
    struct cli cli = {.say = stderr};
    struct qstill_error err = {0};
    int status;

    if (open_standard_fds() < 0)
        return -QSTILL_E_FAILED;
    setlocale(LC_CTYPE, "");
    /* else a write for each character of what guests and files say */
    setvbuf(stderr, NULL, _IOLBF, BUFSIZ);
    /* a snapshot must not be left half-way because a reader went away */
    signal(SIGPIPE, SIG_IGN);
    /* a file size limit is an error of a write (EFBIG), with its way back */
    signal(SIGXFSZ, SIG_IGN);
    if (run(&cli, argc, argv, &err) < 0) {
        print_error(&cli, &err);
        status = status_of(&cli, err.code);
    } else {
        status = cli.status;
    }
    return flush_output(&cli, status);
}
