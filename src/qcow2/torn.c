/* SPDX-License-Identifier: MIT */
#include "torn.h"

#include "base/bytes.h"

int torn_refuse(const char *name, struct qstill_error *err)
{
    err_set(err, QSTILL_E_PRECONDITION,
            "%s was being folded into when that broke off: by itself it is "
            "neither old nor new",
            name);
    return err_hint(err, "the image above it is right; the same merge ends "
                         "it (qstill recover, where it is a VM's)");
}

static int put(const struct io *io, int fd, const char *name,
               uint64_t incompatible, uint64_t autoclear,
               struct qstill_error *err)
{
    uint8_t sector[QCOW2_SECTOR];

    if (io_read_full(io, fd, sector, sizeof(sector), 0, err) < 0)
        return err_wrap(err, "%s", name);
    put_be64(sector + QCOW2_AT_INCOMPATIBLE, incompatible);
    put_be64(sector + QCOW2_AT_AUTOCLEAR, autoclear);
    if (io_write_full(io, fd, sector, sizeof(sector), 0, err) < 0)
        return err_wrap(err, "%s", name);
    return io_datasync(io, fd, name, err);
}

int torn_mark(const struct io *io, int fd, const char *name,
              const struct qcow2_header *now, struct qstill_error *err)
{
    if (torn_is(now))
        return 0;
    return put(io, fd, name, now->incompatible | QCOW2_INCOMPAT_CORRUPT,
               now->autoclear | QCOW2_AUTOCLEAR_TORN, err);
}

int torn_unmark(const struct io *io, int fd, const char *name,
                const struct qcow2_header *now, struct qstill_error *err)
{
    if (torn_is(now))
        return 0;
    return put(io, fd, name, now->incompatible, now->autoclear, err);
}
