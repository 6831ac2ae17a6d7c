/* SPDX-License-Identifier: MIT */
#include <stdio.h>
#include "qstill.h"
int main(void)
{
    printf("qstill %s\n", qstill_version());
    return 0;
}
