/* SPDX-License-Identifier: MIT */
/* The context of a verb: its store, its notes, its errors. */
#include "cli.h"

#include <stdarg.h>
#include <stdio.h>

#include "launch.h"
#include "progress.h"
#include "text.h"

int cli_usage(const struct cli *cli, struct qstill_error *err, const char *fmt,
              ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(err->message, sizeof(err->message), fmt, ap);
    va_end(ap);
    snprintf(err->hint, sizeof(err->hint), "see 'qstill %s%s--help'",
             cli->verb ? cli->verb->name : "", cli->verb ? " " : "");
    err->code = QSTILL_E_USAGE;
    return err->code;
}

int cli_fail(struct qstill_error *err, int code, const char *fmt, ...)
{
    va_list ap;

    va_start(ap, fmt);
    vsnprintf(err->message, sizeof(err->message), fmt, ap);
    va_end(ap);
    err->hint[0] = '\0';
    err->code = code;
    return code;
}

static void print_note(void *user, const char *text)
{
    struct cli *cli = user;

    if (cli->quiet)
        return;
    progress_clear(cli);
    fprintf(cli->say, "qstill: %s: ", cli->verb->name);
    text_safe(cli->say, text);
    fputc('\n', cli->say);
}

int cli_store(struct cli *cli, struct qstill_store **out,
              struct qstill_error *err)
{
    struct qstill_store_options options = QSTILL_STORE_OPTIONS_INIT;

    if (!cli->store) {
        options.dir = cli->store_dir;
        if (qstill_store_open(&cli->store, &options, err) < 0)
            return err->code;
        qstill_store_set_note(cli->store, print_note, cli);
        qstill_store_set_launch(cli->store, cli_launch, NULL);
    }
    *out = cli->store;
    return 0;
}
