/* SPDX-License-Identifier: MIT */
/*
 * The one error struct of include/qstill.h, filled from inside the library.
 * `err` is never NULL here: public functions substitute a scratch one at the
 * door with err_door(). Each setter returns the code, so failing is one line.
 */
#ifndef QSTILL_BASE_ERROR_H
#define QSTILL_BASE_ERROR_H

#include "qstill.h"
#include "cleanup.h"

/* Sets code and message, drops any old hint. Control characters become '?'.
 * Returns `code` (negative). */
int err_set(struct qstill_error *err, int code, const char *fmt, ...)
    PRINTF_LIKE(3, 4);

/*
 * As err_set, with ": strerror(errno_value)" behind the message and the code
 * from the errno: ENOSPC/EDQUOT/EFBIG -> NO_SPACE, EACCES/EPERM/EROFS ->
 * PERMISSION, ENOENT -> NOT_FOUND, EEXIST/EBUSY -> BUSY, else FAILED.
 */
int err_errno(struct qstill_error *err, int errno_value, const char *fmt, ...)
    PRINTF_LIKE(3, 4);

/* Out of memory. Returns QSTILL_E_FAILED. */
int err_nomem(struct qstill_error *err);

/* Puts "context: " in front of the message. Returns the error's own code. */
int err_wrap(struct qstill_error *err, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* Sets the hint (what to do next). Returns the error's own code. */
int err_hint(struct qstill_error *err, const char *fmt, ...) PRINTF_LIKE(2, 3);

/* Forgets a failure that is tolerated. Returns 0: whoever returns 0 leaves
 * err->code 0, so that callers may test either. */
static inline int err_clear(struct qstill_error *err)
{
    err->code = 0;
    err->hint[0] = '\0';
    return 0;
}

/* The public door: clears the caller's error, or gives the scratch one. */
static inline struct qstill_error *err_door(struct qstill_error *caller,
                                            struct qstill_error *scratch)
{
    struct qstill_error *err = caller ? caller : scratch;

    err->code = 0;
    err->message[0] = '\0';
    err->hint[0] = '\0';
    return err;
}

#endif
