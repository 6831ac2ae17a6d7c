/* SPDX-License-Identifier: MIT */
#include "giveback.h"

#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/stat.h>
#include <unistd.h>

#include "clock.h"

#define STEP_MIN ((off_t)1 << 20)
#define STEP_MAX ((off_t)1 << 40)
/* A step that takes longer is too long for who waits behind it. */
#define STEP_MS 0.4

int giveback_open(int dirfd, const char *name)
{
    int fd = openat(dirfd, name,
                    O_WRONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC | O_NOCTTY);
    struct stat st;

    if (fd >= 0 && (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) ||
                    st.st_blocks * 512 <= STEP_MIN)) {
        close(fd);
        fd = -1;
    }
    return fd;
}

/* Nobody can open it any more, and nobody has it open: a lease to write is
 * given to the only one who has. Were it broken, by way of /proc, SIGIO would
 * end the process. */
static bool is_ours_alone(int fd, off_t *size)
{
    struct stat st;

    if (fstat(fd, &st) < 0 || st.st_nlink > 0 ||
        fcntl(fd, F_SETSIG, SIGURG) < 0 || fcntl(fd, F_SETLEASE, F_WRLCK) < 0)
        return false;
    *size = st.st_size;
    return true;
}

void giveback_close(int fd)
{
    off_t size, step = STEP_MIN;

    if (fd < 0)
        return;
    while (is_ours_alone(fd, &size) && size > 0) {
        double start = clock_ms();

        if (ftruncate(fd, size > step ? size - step : 0) < 0)
            break;
        if (clock_ms() - start < STEP_MS / 4 && step < STEP_MAX)
            step *= 2;
        else if (clock_ms() - start > STEP_MS && step > STEP_MIN)
            step /= 2;
    }
    close(fd);
}
