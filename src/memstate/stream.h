/* SPDX-License-Identifier: MIT */
/*
 * Numbers of QEMU's migration stream that the parser and the writer share.
 * All integers are big-endian; str8 is a length byte and that many bytes.
 *
 *   "QEVM" be32 3
 *   07 be32 len machine { 05 str8 name be32 1 payload }*     configuration
 *   01 be32 id str8 "ram" be32 0 be32 4  RECORDS [7E be32 id]     START
 *   02 be32 id                           RECORDS [7E be32 id]     PART*
 *   03 be32 id                           RECORDS [7E be32 id]     END
 *   04 ...                               device sections, no lengths
 *   00 [06 be32 len json]                EOF, vmdescription
 *
 * A RECORD is headed by be64 (offset or total) | flags:
 *   total  | MEM_SIZE    { str8 id be64 used_length }* up to total
 *   offset | ZERO        [str8 id] u8 0
 *   offset | PAGE        [str8 id] 4096 bytes
 *   0      | EOS         the last record of a section
 * and CONTINUE beside ZERO or PAGE: no id, the block is that of before.
 */
#ifndef QSTILL_MEMSTATE_STREAM_H
#define QSTILL_MEMSTATE_STREAM_H

#define STREAM_MAGIC   0x5145564du
#define STREAM_VERSION 3u

enum stream_item {
    STREAM_EOF = 0x00,
    STREAM_START = 0x01,
    STREAM_PART = 0x02,
    STREAM_END = 0x03,
    STREAM_FULL = 0x04,
    STREAM_SUBSECTION = 0x05,
    STREAM_VMDESCRIPTION = 0x06,
    STREAM_CONFIGURATION = 0x07,
    STREAM_COMMAND = 0x08,
    STREAM_FOOTER = 0x7e,
};

enum stream_flag {
    STREAM_RAM_ZERO = 0x002,
    STREAM_RAM_MEM_SIZE = 0x004,
    STREAM_RAM_PAGE = 0x008,
    STREAM_RAM_EOS = 0x010,
    STREAM_RAM_CONTINUE = 0x020,
    STREAM_RAM_XBZRLE = 0x040,
    STREAM_RAM_HOOK = 0x080,
    STREAM_RAM_COMPRESS = 0x100,
    STREAM_RAM_MULTIFD = 0x200,
};
#define STREAM_RAM_FLAGS 0xfffu

#define STREAM_RAM_ID      "ram"
#define STREAM_RAM_VERSION 4u

enum stream_command {
    STREAM_OPEN_RETURN_PATH = 1,
    STREAM_PING = 2,
    STREAM_SWITCHOVER_START = 11,
};

#endif
