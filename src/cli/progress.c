/* SPDX-License-Identifier: MIT */
/* Progress on standard error. */
#include "progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "say.h"
#include "text.h"

#define BAR_AFTER_S   0.3 /* shorter work shows no bar */
#define BAR_EVERY_S   0.1
#define LINE_EVERY_S  1.0
#define BAR_WIDTH_MAX 40
#define RATE_AFTER_S  0.2 /* a rate over less time says nothing */

static double now_s(void)
{
    struct timespec ts;

    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

void progress_init(struct progress *p, struct cli *cli)
{
    const char *term = getenv("TERM");

    *p = (struct progress){.cli = cli};
    p->terminal =
        isatty(STDERR_FILENO) && term && *term && strcmp(term, "dumb") != 0;
    p->phase_began = p->shown = now_s();
}

void progress_clear(struct cli *cli)
{
    if (cli->bar_drawn)
        fputs("\r\033[K", cli->say);
    cli->bar_drawn = false;
}

static void phase_over(struct progress *p)
{
    if (!p->cli->verbose || !p->phase[0])
        return;
    progress_clear(p->cli);
    fprintf(p->cli->say, "qstill: %s: %s: %.0f ms\n", p->cli->verb->name,
            p->phase, (now_s() - p->phase_began) * 1000);
}

/* "43%  812 MiB of 1.9 GiB  410 MiB/s  3 s left" */
static void describe(const struct qstill_progress *now, double elapsed,
                     char *out, size_t size)
{
    char done[TEXT_SIZE_MAX], total[TEXT_SIZE_MAX], rate[TEXT_SIZE_MAX];
    double per_second;
    int n;

    if (now->bytes_total == 0) {
        snprintf(out, size, "%.0f s", elapsed);
        return;
    }
    n = snprintf(out, size, "%3.0f%%  %s of %s",
                 100.0 * (double)now->bytes_done / (double)now->bytes_total,
                 text_size(done, now->bytes_done),
                 text_size(total, now->bytes_total));
    if (elapsed < RATE_AFTER_S || now->bytes_done == 0 ||
        now->bytes_done > now->bytes_total)
        return;
    per_second = (double)now->bytes_done / elapsed;
    snprintf(out + n, size - (size_t)n, "  %s/s  %.0f s left",
             text_size(rate, (uint64_t)per_second),
             (double)(now->bytes_total - now->bytes_done) / per_second);
}

static int terminal_width(void)
{
    struct winsize ws;

    if (ioctl(STDERR_FILENO, TIOCGWINSZ, &ws) < 0 || ws.ws_col == 0)
        return 80;
    return ws.ws_col;
}

static void draw_bar(struct progress *p, const struct qstill_progress *now,
                     const char *words)
{
    int room = terminal_width() - (int)strlen(words) - (int)strlen(p->phase) -
               6; /* spaces, brackets, and the last column stays free */
    int width = room < BAR_WIDTH_MAX ? room : BAR_WIDTH_MAX, full;
    FILE *out = p->cli->say;

    progress_clear(p->cli);
    p->cli->bar_drawn = true;
    if (now->bytes_total == 0 || width < 5) {
        fprintf(out, "%s  %s", p->phase, room > 0 ? words : "");
        fflush(out);
        return;
    }
    full = (int)((double)width * (double)now->bytes_done /
                 (double)now->bytes_total);
    full = full > width ? width : full;
    fprintf(out, "%s [", p->phase);
    for (int i = 0; i < width; i++)
        fputc(i < full ? '#' : '.', out);
    fprintf(out, "] %s", words);
    fflush(out);
}

void progress_tick(void *user, const struct qstill_progress *now)
{
    struct progress *p = user;
    double t = now_s();
    char words[128];

    if (strncmp(p->phase, now->phase, sizeof(p->phase) - 1) != 0) {
        phase_over(p);
        snprintf(p->phase, sizeof(p->phase), "%s", now->phase);
        p->phase_began = t;
    }
    if (p->cli->quiet || t - p->shown < (!p->terminal        ? LINE_EVERY_S
                                         : p->cli->bar_drawn ? BAR_EVERY_S
                                                             : BAR_AFTER_S))
        return;
    p->shown = t;
    if (!say_push())
        return; /* nobody reads: a bar would only be old then */
    describe(now, t - p->phase_began, words, sizeof(words));
    if (p->terminal)
        draw_bar(p, now, words);
    else
        fprintf(p->cli->say, "qstill: %s: %s %s\n", p->cli->verb->name,
                p->phase, words);
}

void progress_end(struct progress *p)
{
    phase_over(p);
    progress_clear(p->cli);
}
