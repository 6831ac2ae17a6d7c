/* SPDX-License-Identifier: MIT */
/*
 * Which capture modes a VM and this host allow, and why the others do not
 * fit. Used by check, which only tells, and by create, which then does it.
 */
#ifndef QSTILL_ENGINE_MODES_H
#define QSTILL_ENGINE_MODES_H

#include "base/error.h"
#include "memstate/ksm.h"

struct session;

/* In the order in which `auto` tries them. */
enum mode { MODE_COW, MODE_BACKGROUND, MODE_PRECOPY, MODE_PAUSED, MODE_COUNT };

const char *mode_name(enum mode m);
/* MODE_COUNT for "auto" and NULL; USAGE for an unknown word. */
int mode_parse(const char *word, enum mode *out, struct qstill_error *err);

struct mode_report {
    /* Why no mode at all can be used, with its code; "" else. */
    char refused_code[48];
    char refused[256];
    char refused_hint[256];
    bool passing; /* that is over by itself: somebody migrates the VM, ... */
    /* What QEMU's own migrate would be refused for; "" else. */
    char blocked[256];
    bool balloon;                 /* the VM may give memory back */
    bool holes_unseen;            /* cow: where it did, it would not be seen */
    char reason[MODE_COUNT][256]; /* "" when the mode can be used */
    bool of_vm[MODE_COUNT];       /* that is for its devices, formats, ... */
    bool background_open;         /* it was not looked at yet */
    struct ksm_mark ksm;          /* at that time */
};

/* Whether a VM with this blocker (query-migrate's text) has all of its state in
 * QEMU's device state: of CPU flags, and of image formats, whose content is in
 * files. Of all others it may be elsewhere, as with a mounted 9p share, virgl
 * or an encrypted guest, and what is not known is one of these. */
bool modes_blocker_is_harmless(const char *why);

/* Asks QEMU and the host; leaves QEMU's settings as they were. */
int modes_probe(struct session *s, struct mode_report *out,
                struct qstill_error *err);
/* The same, but for mode background where cow fits: to learn that takes longer
 * than all the rest. */
int modes_probe_cow_first(struct session *s, struct mode_report *out,
                          struct qstill_error *err);
/* What that left out, if anything. */
int modes_probe_rest(struct session *s, struct mode_report *r,
                     struct qstill_error *err);

/* Where no mode fits: whether that is for what the VM is made of alone. Not so
 * where other rights, another kernel, or a VM that runs on, would do. */
bool modes_is_for_good(const struct mode_report *report);

/* For a snapshot of the disks alone: tells of devices that are disks for the
 * guest, and none that QEMU would snapshot. What cannot be asked is not told.
 */
void modes_note_pmem(struct session *s);

/* Later, with the same QEMU: BUSY names a device that was plugged in since and
 * that `mode` cannot be used with. */
int modes_look_again(struct session *s, const struct mode_report *planned,
                     enum mode mode, struct qstill_error *err);

/* Of the probe: background, where KSM is at work. And when such a capture is
 * over: PRECONDITION where KSM was at work meanwhile. */
void modes_probe_ksm(struct session *s, struct mode_report *r);
int modes_look_for_ksm(struct session *s, const struct mode_report *planned,
                       struct qstill_error *err);

/*
 * Takes `wanted`, or the first that fits when it is MODE_COUNT: PRECONDITION
 * with the reasons otherwise. `why` gets why the faster ones were not taken.
 */
int modes_choose(const struct mode_report *report, enum mode wanted,
                 bool paused, enum mode *out, char *why, size_t why_size,
                 struct qstill_error *err);

#endif
