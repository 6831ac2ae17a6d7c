/* SPDX-License-Identifier: MIT */
/*
 * Takes a migration stream apart: bytes in, events out, no I/O. What stands
 * behind the RAM cannot be taken apart (sections have no length): it is handed
 * on as it is, and devstate.h looks at its ends.
 *
 * Refused, since its end could not be found or it would not be RAM as it is
 * (PRECONDITION): a section that is not RAM in front of RAM's end (virtio-mem,
 * vfio, dirty-bitmap), postcopy, xbzrle, compression, multifd, mapped-ram,
 * x-ignore-shared. Anything else unexpected is CORRUPT.
 */
#ifndef QSTILL_MEMSTATE_STREAM_PARSE_H
#define QSTILL_MEMSTATE_STREAM_PARSE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/error.h"

/* Each event may fail, which ends the parsing with its error. */
struct stream_events {
    /* The list of RAM blocks; ids are unique, without NUL, not empty. Sizes
     * are as the stream says: the receiver has limits of its own. */
    int (*block)(void *user, unsigned index, const char *id, uint64_t size,
                 struct qstill_error *err);
    /* The list is complete. */
    int (*blocks_done)(void *user, struct qstill_error *err);
    /* The first byte of a PART was seen; the first one proves, in a
     * background snapshot, that the state is captured. */
    int (*part)(void *user, struct qstill_error *err);
    /* `offset` is a multiple of 4096 inside the block. */
    int (*page)(void *user, unsigned index, uint64_t offset,
                const uint8_t *data, struct qstill_error *err);
    int (*zero)(void *user, unsigned index, uint64_t offset,
                struct qstill_error *err);
    /* RAM is complete: what follows goes to `tail`. */
    int (*ram_done)(void *user, struct qstill_error *err);
    /* Device sections, EOF, vmdescription, in pieces. */
    int (*tail)(void *user, const uint8_t *data, size_t len,
                struct qstill_error *err);
};

enum stream_flavour {
    STREAM_BACKGROUND, /* no RAM END: RAM is complete at the first device */
    STREAM_PRECOPY     /* RAM is complete at its END */
};

/* The machine type's and other names' limit; QEMU's own are under 64. */
#define STREAM_NAME_MAX 255u
/* All configuration subsections: uuid and page bits are under 100 bytes. */
#define STREAM_CONFIG_MAX 4096u
/* The longest element that must lie in one piece: a page record with id. */
#define STREAM_ELEMENT_MAX (8u + 1u + 255u + 4096u)

struct stream_parser;

int stream_parser_new(struct stream_parser **out, enum stream_flavour flavour,
                      const struct stream_events *events, void *user,
                      struct qstill_error *err);
void stream_parser_free(struct stream_parser *p);
void stream_parser_freep(struct stream_parser **p);

/*
 * Takes whole elements off the front of data and says in *used how many bytes
 * that was; the rest (less than STREAM_ELEMENT_MAX) comes again, with more
 * behind it, in the next call. After an error the parser is of no use.
 */
int stream_parser_feed(struct stream_parser *p, const uint8_t *data, size_t len,
                       size_t *used, struct qstill_error *err);

/* The stream has ended; `left` bytes were not used. CORRUPT when it ended too
 * early. The tail's own end is for devstate.h to judge. */
int stream_parser_end(const struct stream_parser *p, size_t left,
                      struct qstill_error *err);

/* Known once blocks_done was called. */
const char *stream_parser_machine(const struct stream_parser *p);
/* Raw configuration subsections. */
const struct buf *stream_parser_config(const struct stream_parser *p);
/* Known once the first RAM section has ended (before ram_done, part). */
bool stream_parser_footers(const struct stream_parser *p);

#endif
