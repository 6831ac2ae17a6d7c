/* SPDX-License-Identifier: MIT */
/*
 * QEMU's migration settings, which belong to the user. What they were is in
 * STORE/VM/settings.json from before we change them until they are back, so
 * that they come back when we die meanwhile: whoever speaks to that QEMU next
 * does it.
 */
#ifndef QSTILL_ENGINE_SETTINGS_H
#define QSTILL_ENGINE_SETTINGS_H

#include "qmp/migrate.h"

#define SETTINGS_FILE "settings.json"

struct session;

struct settings {
    struct qmp_names on; /* capabilities */
    int64_t bandwidth;
    int64_t downtime;
    char *tls_creds; /* "": none */
};
#define SETTINGS_INIT                                                          \
    {                                                                          \
        QMP_NAMES_INIT, 0, 0, NULL                                             \
    }
void settings_fini(struct settings *t);

/* Reads them, and writes them down. `out` must be initialised. */
int settings_keep(struct session *s, struct settings *out,
                  struct qstill_error *err);
/* The capability (NULL: none) goes on, and all others off: some exclude it, and
 * with some of them nobody reads or writes an ordinary stream. */
int settings_enable(struct session *s, const struct settings *was,
                    const char *capability, struct qstill_error *err);
/* A migration into our pipe, or out of it, is not to speak TLS. */
int settings_clear_tls(struct session *s, const struct settings *was,
                       struct qstill_error *err);
/* Best effort: while a migration runs, QEMU takes no capabilities; the file
 * stays then, for settings_mend(). */
void settings_put_back(struct session *s, const struct settings *was);

bool settings_are_kept(int vmfd);
/* What a process that died had kept. Nothing when there is none, or when the
 * QEMU is another one. */
void settings_mend(struct session *s);

#endif
