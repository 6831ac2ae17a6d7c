/* SPDX-License-Identifier: MIT */
/*
 * The launch record: how the QEMU process of a VM was started, what would
 * hinder starting it again so, and the argument vector for the next start,
 * with other disk images and, when asked for, with saved files as its RAM.
 *
 * Nothing here starts a process. The record was written by the process that
 * it describes and is no more trusted than that: whoever starts the result
 * does so as rec->uid and rec->gid, never as more.
 */
#ifndef QSTILL_ENGINE_LAUNCH_H
#define QSTILL_ENGINE_LAUNCH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/error.h"
#include "confine.h"
#include "groups.h"
#include "limits.h"

struct launch_record {
    char **argv;  /* ends with NULL; at least argv[0] */
    char *cwd;    /* absolute */
    char **env;   /* ends with NULL; "K=V", only the names a start needs */
    uint32_t uid; /* effective ids */
    uint32_t gid;
    char *exe; /* absolute path of the binary */
    struct limits limits;
    struct confine confine;
    struct groups groups;
};

/* Every member is malloc'ed; a zeroed record is fine. */
void launch_record_fini(struct launch_record *rec);

/*
 * Reads the record of a live process. Errors: UNREACHABLE (no such process,
 * or it ended meanwhile), PERMISSION (it belongs to another user),
 * PRECONDITION (its command line is larger than we keep).
 */
int launch_read(pid_t pid, struct launch_record *out, struct qstill_error *err);

/* ----------------------------------------------------------------- change */

struct launch_disk {
    const char *name;        /* for messages, e.g. "vda" */
    const char *attach_path; /* as QEMU named it; relative means to rec->cwd */
    const char *attach_format; /* "raw", "qcow2", ... */
    const char *head_path;     /* absolute; what the next start opens */
    const char *head_format;
};

struct launch_ram {
    const char *id; /* RAM block: "pc.ram", "mem0" or "/objects/mem0" */
    uint64_t size;
    const char *path; /* absolute; QEMU opens it read-write, maps it privately:
                         see ramfds.h */
};

struct launch_change {
    const struct launch_disk *disks;
    size_t disk_count;
    const struct launch_ram *mapped; /* RAM blocks to map from files */
    size_t mapped_count;
    /* QEMU's memory-backend-file has a property "rom" (9.0 and later): the
     * RAM files are opened read-only, which no guest can get around. */
    bool mapped_readonly;
    bool paused;          /* start with -S */
    const char *incoming; /* NULL, or the argument of -incoming ("defer") */
    const char *machine;  /* the type whose state comes in; NULL: as it is */
};

/*
 * The argv of the next start, ending with NULL, to be freed with
 * launch_argv_free(). argv[0] is rec->exe. Options of the recorded start that
 * say how *that* one began (-S, -incoming, -loadvm, -runas) are left out, and
 * RAM that it mapped from a snapshot of ours is ordinary RAM again.
 *
 * Fails with PRECONDITION, and the reason, when a disk or a RAM block cannot
 * be put in. It changes no file (it stats the disks' paths, and may read the
 * header of an attached image), so a preflight may call it to learn whether a
 * later start can be built; when only the RAM files hinder, the same change
 * with mapped_count 0 succeeds.
 */
int launch_build(const struct launch_record *rec,
                 const struct launch_change *change, char ***argv_out,
                 struct qstill_error *err);
void launch_argv_free(char **argv); /* NULL is fine */

/*
 * Whether a start from this record makes these RAM blocks, all of memory
 * backends: PRECONDITION names the first one that it does not make, or makes
 * for no device: that was plugged into the running machine. What cannot be told
 * passes.
 */
int launch_check_ram(const struct launch_record *rec, const char *const *ids,
                     size_t count, struct qstill_error *err);

/* Whether the block is an nvdimm whose content is in a file: a disk for the
 * guest, and what is loaded into it stays there. */
bool launch_ram_is_kept(const struct launch_record *rec, const char *id);

/* Its file, absolute and malloc'ed; NULL when it is none such. */
char *launch_ram_file(const struct launch_record *rec, const char *id);

/* Whether the block's memory backend is read-only: a start maps its file, and
 * nothing can be loaded into it. */
bool launch_ram_is_readonly(const struct launch_record *rec, const char *id);

/* ---------------------------------------------------------------- hinders */

enum launch_weight {
    LAUNCH_BLOCKER, /* cannot be started again without a launcher */
    LAUNCH_NOTE     /* starts, but something is different */
};

struct launch_hinder {
    enum launch_weight weight;
    const char *code; /* a stable word, static: "inherited-fd" */
    char *message;
    char *hint;
};

struct launch_hinder_list {
    struct launch_hinder *items;
    size_t count;
};

/*
 * All that hinders a start from this record with these disks (head_path and
 * head_format may be NULL); `pid`: after its process, which is there, has been
 * ended, or 0. No hinder gives an empty list. `out` is zeroed
 * before; free it with launch_hinder_list_fini(). Codes of blockers:
 * inherited-fd, disk-not-in-argv, disk-ambiguous, disk-option,
 * binary-missing, cwd-missing, file-missing, file-busy, chroot, preconfig,
 * terminal, snapshot-mode, confined; of notes: loadvm, readconfig,
 * user-changed, stdio-to-log, helper-process.
 */
int launch_hinders(const struct launch_record *rec,
                   const struct launch_disk *disks, size_t disk_count, int pid,
                   struct launch_hinder_list *out, struct qstill_error *err);
void launch_hinder_list_fini(struct launch_hinder_list *list);

/* Whether a start from this record makes a seccomp filter of its own (-sandbox
 * on, or the same in a file of -readconfig, as that is now). */
bool launch_has_sandbox(const struct launch_record *rec);

/* Whether the VM has a TPM (-tpmdev): its state is kept by another program. */
bool launch_has_tpm(const struct launch_record *rec);

#endif
