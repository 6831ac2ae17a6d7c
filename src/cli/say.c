/* SPDX-License-Identifier: MIT */
#include "say.h"

#include <errno.h>
#include <limits.h>
#include <poll.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#include "cli.h"

/* A job says some lines; what is beyond this is progress of hours. */
static char kept[64 * 1024];
static size_t kept_len;
static bool lost;

bool say_is_writable(void)
{
    struct pollfd p = {.fd = STDERR_FILENO, .events = POLLOUT};

    /* an error is for write() to find */
    return poll(&p, 1, 0) == 1;
}

static void push(bool wait)
{
    while (kept_len > 0 && (wait || say_is_writable())) {
        /* a pipe that polls as writable takes as much */
        size_t n = kept_len < PIPE_BUF ? kept_len : PIPE_BUF;
        ssize_t done = write(STDERR_FILENO, kept, n);

        if (done < 0 && errno == EINTR)
            continue;
        if (done < 0) {
            kept_len = 0; /* nobody will read it */
            return;
        }
        kept_len -= (size_t)done;
        memmove(kept, kept + done, kept_len);
    }
}

bool say_push(void)
{
    push(false);
    return kept_len == 0;
}

static ssize_t keep(void *cookie, const char *data, size_t len)
{
    (void)cookie;
    if (len > sizeof(kept) - kept_len) {
        lost = true;
    } else {
        memcpy(kept + kept_len, data, len);
        kept_len += len;
    }
    push(false);
    return (ssize_t)len;
}

FILE *say_open(void)
{
    FILE *stream =
        fopencookie(NULL, "w", (cookie_io_functions_t){.write = keep});

    if (!stream)
        return stderr;
    setvbuf(stream, NULL, _IOLBF, BUFSIZ);
    return stream;
}

void say_close(FILE *stream)
{
    if (stream == stderr)
        return;
    fclose(stream);
    push(true);
    if (lost)
        fputs("qstill: (some lines could not be written in time)\n", stderr);
    lost = false;
}
