/* SPDX-License-Identifier: MIT */
#include "confine.h"

#include <linux/capability.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { WORDS = _LINUX_CAPABILITY_U32S_3 };

struct caps {
    uint64_t effective, permitted, inheritable;
};

static int get(struct caps *out)
{
    struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct d[WORDS] = {{0}};

    if (syscall(SYS_capget, &h, d) < 0)
        return -1;
    *out = (struct caps){d[0].effective | (uint64_t)d[1].effective << 32,
                         d[0].permitted | (uint64_t)d[1].permitted << 32,
                         d[0].inheritable | (uint64_t)d[1].inheritable << 32};
    return 0;
}

static int set(const struct caps *c)
{
    struct __user_cap_header_struct h = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct d[WORDS] = {
        {(uint32_t)c->effective, (uint32_t)c->permitted,
         (uint32_t)c->inheritable},
        {(uint32_t)(c->effective >> 32), (uint32_t)(c->permitted >> 32),
         (uint32_t)(c->inheritable >> 32)},
    };

    return (int)syscall(SYS_capset, &h, d);
}

static bool has(uint64_t caps, unsigned cap)
{
    return caps >> cap & 1;
}

/* Nobody gains from a bounding set who can gain nothing by a new program. */
static bool needs_no_bounds(const struct qstill_launch *l)
{
    return l->no_new_privs && l->uid != 0;
}

int confine_before_user(const struct qstill_launch *l, bool change_user)
{
    if (!l->confined)
        return 0;
    for (unsigned cap = 0; cap < 64; cap++)
        if (!has(l->caps_bounding, cap) &&
            prctl(PR_CAPBSET_READ, cap, 0, 0, 0) == 1 &&
            prctl(PR_CAPBSET_DROP, cap, 0, 0, 0) < 0 && !needs_no_bounds(l))
            return -1;
    /* else the change takes all of them away, and what is ambient with them */
    return change_user && l->uid != 0 && l->caps_ambient
               ? prctl(PR_SET_KEEPCAPS, 1, 0, 0, 0)
               : 0;
}

/* An ambient one must be permitted and inheritable, too. What exec gives root
 * comes from the bounding set and from what is inheritable. */
int confine_after_user(const struct qstill_launch *l, bool change_user)
{
    struct caps c;
    uint64_t ambient;

    if (!l->confined)
        return 0;
    if (prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) < 0 ||
        get(&c) < 0)
        return -1;
    ambient = l->caps_ambient & c.permitted & l->caps_inheritable;
    c.inheritable = l->caps_inheritable & (c.inheritable | c.permitted);
    if (change_user && l->uid != 0)
        c.effective = c.permitted = ambient;
    if (set(&c) < 0)
        return -1;
    for (unsigned cap = 0; cap < 64; cap++)
        if (has(ambient, cap) &&
            prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap, 0, 0) < 0)
            return -1;
    return l->no_new_privs ? prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) : 0;
}
