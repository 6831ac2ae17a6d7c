/* SPDX-License-Identifier: MIT */
#include "lock.h"

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>

/* Bytes of the file: USE + bit "I do this", DENY + bit "nobody else may". */
enum { USE = 100, DENY = 200 };
enum {
    CONSISTENT_READ = 1 << 0,
    WRITE = 1 << 1,
    WRITE_UNCHANGED = 1 << 2,
    RESIZE = 1 << 3,
    BITS = 4,
};

static const struct {
    unsigned use;
    unsigned deny;
} wants[] = {
    [IMAGE_LOCK_READ] = {CONSISTENT_READ, WRITE | RESIZE},
    [IMAGE_LOCK_WRITE] = {CONSISTENT_READ | WRITE | RESIZE, WRITE | RESIZE},
    [IMAGE_LOCK_EXCLUSIVE] = {CONSISTENT_READ | WRITE | RESIZE,
                              CONSISTENT_READ | WRITE | WRITE_UNCHANGED |
                                  RESIZE},
};

static int lock_byte(int fd, off_t at)
{
    struct flock l = {
        .l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = at, .l_len = 1};

    return fcntl(fd, F_OFD_SETLK, &l);
}

static bool held_by_others(int fd, off_t at)
{
    struct flock l = {
        .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = at, .l_len = 1};

    return fcntl(fd, F_OFD_GETLK, &l) == 0 && l.l_type != F_UNLCK;
}

static int busy(const char *path, const char *what, struct qstill_error *err)
{
    err_set(err, QSTILL_E_BUSY, "%s is in use: another process %s", path, what);
    return err_hint(err, "a running VM has it open, or another command "
                         "works on it");
}

int image_lock_look(int fd, const char *path, enum image_lock lock,
                    struct qstill_error *err)
{
    unsigned use = wants[lock].use, deny = wants[lock].deny;

    for (int i = 0; i < BITS; i++) {
        if ((use & 1u << i) && held_by_others(fd, DENY + i))
            return busy(path,
                        use & WRITE ? "does not let it be written"
                                    : "does not let it be read",
                        err);
        if ((deny & 1u << i) && held_by_others(fd, USE + i))
            return busy(path,
                        (1u << i) & (WRITE | RESIZE) ? "writes to it"
                                                     : "reads it",
                        err);
    }
    return 0;
}

int image_lock(int fd, const char *path, enum image_lock lock,
               struct qstill_error *err)
{
    unsigned use = wants[lock].use, deny = wants[lock].deny;

    for (int i = 0; i < BITS; i++) {
        if (((use & 1u << i) && lock_byte(fd, USE + i) < 0) ||
            ((deny & 1u << i) && lock_byte(fd, DENY + i) < 0)) {
            if (errno == EAGAIN || errno == EACCES)
                return busy(path, "holds a lock that is not QEMU's", err);
            return 0; /* no OFD locks here */
        }
    }
    return image_lock_look(fd, path, lock, err);
}
