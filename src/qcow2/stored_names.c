/* SPDX-License-Identifier: MIT */
#include "stored_names.h"

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/checked.h"
#include "base/cleanup.h"
#include "layout.h"

#define QED_AT_FEATURES 16u
#define QED_BACKING_RAW 4u
#define QED_AT_NAME     56u /* its offset and length, 32 bits each */

/* Any file name that QEMU takes; the header's cluster bounds it, too. */
#define MAX_DATA_NAME 65536u

/* A vmdk whose data is in files of its own begins with that. QEMU reads as much
 * of it. */
#define VMDK_TEXT      "# Disk DescriptorFile"
#define MAX_DESCRIPTOR ((1u << 20) - 1)

void stored_names_fini(struct stored_names *names)
{
    free(names->backing);
    for (size_t i = 0; i < names->data_count; i++)
        free(names->data[i]);
    free(names->data);
    *names = (struct stored_names){0};
}

static int read_name(const struct io *io, int fd, uint64_t off, uint64_t len,
                     char **out, struct qstill_error *err)
{
    size_t got;

    *out = calloc(1, (size_t)len + 1);
    if (!*out)
        return err_nomem(err);
    return io_read_upto(io, fd, *out, (size_t)len, off, &got, err);
}

/* Takes the name. */
static int add_data(struct stored_names *out, char *name,
                    struct qstill_error *err)
{
    char **v = realloc(out->data, (out->data_count + 1) * sizeof(*v));

    if (v)
        out->data = v;
    if (!v || !name) {
        free(name);
        return err_nomem(err);
    }
    v[out->data_count++] = name;
    return 0;
}

/* In the extensions, which begin behind the header and end where the backing
 * file's name does, or with the cluster. */
static int read_data_name(const struct io *io, int fd, const uint8_t *head,
                          struct stored_names *out, struct qstill_error *err)
{
    uint64_t end = get_be64(head + QCOW2_AT_BACKING_OFFSET);
    uint64_t at = get_be32(head + QCOW2_AT_HEADER_LENGTH);

    if (end == 0 || end > 1u << QCOW2_MAX_CLUSTER_BITS)
        end = 1u << QCOW2_MAX_CLUSTER_BITS;
    while (at + 8 <= end) {
        uint8_t ext[8];
        uint32_t type, len;
        size_t got;

        if (io_read_upto(io, fd, ext, sizeof(ext), at, &got, err) < 0)
            return err->code;
        type = get_be32(ext);
        len = get_be32(ext + 4);
        at += sizeof(ext);
        if (got < sizeof(ext) || type == QCOW2_EXT_END || len > end - at)
            break;
        if (type == QCOW2_EXT_DATA_FILE && len > 0 && len <= MAX_DATA_NAME) {
            char *name = NULL;

            if (read_name(io, fd, at, len, &name, err) == 0)
                add_data(out, take_ptr(&name), err);
            free(name);
            return err->code;
        }
        at += round_up_u64(len, 8);
    }
    out->data_untold = true;
    return 0;
}

/* The lines of a descriptor that name an extent:
 *   RW 8192 FLAT "disk-flat.vmdk" 0 */
static int read_extents(const struct io *io, int fd, struct stored_names *out,
                        struct qstill_error *err)
{
    CLEANUP(freep) char *text = calloc(1, MAX_DESCRIPTOR + 1);
    char *rest = NULL;
    size_t got;

    if (!text)
        return err_nomem(err);
    if (io_read_upto(io, fd, text, MAX_DESCRIPTOR, 0, &got, err) < 0)
        return err->code;
    for (char *line = strtok_r(text, "\r\n", &rest); line;
         line = strtok_r(NULL, "\r\n", &rest)) {
        char *from = strchr(line, '"'), *to = strrchr(line, '"');

        if (from == to ||
            (strncmp(line, "RW ", 3) != 0 && strncmp(line, "RDONLY ", 7) != 0))
            continue;
        *to = '\0';
        out->data_unread |= strncmp(line, "RW ", 3) != 0;
        if (add_data(out, strdup(from + 1), err) < 0)
            return err->code;
    }
    return 0;
}

/* The backing file's name is at the same place in every version of qcow, and
 * elsewhere in qed, the only other format whose images QEMU lets stand on qcow2
 * and raw ones. */
int stored_names_read(const struct io *io, int fd, struct stored_names *out,
                      struct qstill_error *err)
{
    uint8_t head[QCOW2_V3_HEADER_MIN] = {0};
    uint64_t off, len;
    size_t got;

    if (io_read_upto(io, fd, head, sizeof(head), 0, &got, err) < 0)
        return err->code;
    if (get_be32(head + QCOW2_AT_MAGIC) == QCOW2_MAGIC) {
        out->format = "qcow2";
        off = get_be64(head + QCOW2_AT_BACKING_OFFSET);
        len = get_be32(head + QCOW2_AT_BACKING_LEN);
        if (get_be32(head + QCOW2_AT_VERSION) >= 3 &&
            (get_be64(head + QCOW2_AT_INCOMPATIBLE) &
             QCOW2_INCOMPAT_DATA_FILE) &&
            read_data_name(io, fd, head, out, err) < 0)
            return err->code;
    } else if (memcmp(head, "QED\0", 4) == 0) {
        out->format = "qed";
        out->backing_raw =
            (get_le64(head + QED_AT_FEATURES) & QED_BACKING_RAW) != 0;
        off = get_le64(head + QED_AT_NAME) & UINT32_MAX;
        len = get_le64(head + QED_AT_NAME) >> 32;
    } else if (memcmp(head, VMDK_TEXT, strlen(VMDK_TEXT)) == 0) {
        out->format = "vmdk";
        return read_extents(io, fd, out, err);
    } else {
        return 0;
    }
    if (off == 0 || off > 1u << QCOW2_MAX_CLUSTER_BITS || len == 0 ||
        len > QCOW2_MAX_BACKING_NAME)
        return 0;
    return read_name(io, fd, off, len, &out->backing, err);
}
