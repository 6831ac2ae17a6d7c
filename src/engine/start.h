/* SPDX-License-Identifier: MIT */
/*
 * Starting the QEMU process of a VM from its launch record, through the
 * caller's launch function, and ending one.
 */
#ifndef QSTILL_ENGINE_START_H
#define QSTILL_ENGINE_START_H

#include "base/error.h"
#include "launch.h"

struct session;

/* In the environment of what an operation starts. */
#define START_TAG_KEY "QSTILL_OPERATION"

/* What the next start opens instead of the recorded heads. */
struct start_head {
    const char *disk;
    const char *path;
    const char *format;
};

struct start_options {
    const struct start_head *heads; /* NULL: those of the record */
    size_t head_count;
    const struct launch_ram *mapped;
    size_t mapped_count;
    bool mapped_readonly; /* launch.h */
    bool paused;          /* -S */
    bool incoming;        /* -incoming defer */
    const char *machine;  /* launch.h */
    const char *tag;      /* the operation's; for start_end_strays() */
};

/* Whether it could be started: PRECONDITION with the first hinder. */
int start_check(struct session *s, const struct start_options *o,
                struct qstill_error *err);
/* Whether it could be with an overlay, any, as the head of each disk. */
int start_check_overlays(struct session *s, struct qstill_error *err);

/*
 * Launches and waits until its monitor answers; then s->qmp is connected and
 * *pid is the process (0 when a launcher did not tell). On failure a process
 * that was started is ended again, and the message has its last words.
 */
int start_vm(struct session *s, const struct start_options *o, int *pid,
             struct qstill_error *err);

/* Whether start_vm() started the process (or a launcher, for it). */
bool start_was_ours(int pid);

/* The last line of the VM's qemu.log, for messages; "" when there is none. */
void start_last_words(struct session *s, char *out, size_t size);

/* A log that has become long loses its beginning: a QEMU may have a line to say
 * for each page. */
void start_trim_log(struct session *s);

/* When the process began, in clock ticks after boot; 0 when it is gone. */
uint64_t start_time_of(int pid);
/* Whether it has ended, or does so while we wait. */
bool start_has_ended(int pid, unsigned wait_ms);

/* Ends QEMU by `quit` and waits until the process is gone; FAILED when that
 * takes too long, with no connection to it any more. */
int start_quit(struct session *s, struct qstill_error *err);
/* Ends the process that start_vm() started, at once. */
void start_kill(struct session *s, int pid);

/*
 * Ends what a start_vm() with this tag started, at once, where whoever called
 * it has died: a QEMU that does not answer yet would come up later, and take
 * the VM's socket over. Its own QEMU must not have been taken for good.
 */
int start_end_strays(struct session *s, const char *tag,
                     struct qstill_error *err);

#endif
