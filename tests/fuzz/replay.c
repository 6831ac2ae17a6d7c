/* SPDX-License-Identifier: MIT */
/*
 * Stands in for libFuzzer's main: gives each file named on the command line,
 * and each file of each directory named, to the fuzzer once. What the fuzzers
 * found stays found, with any compiler. Prints the number of inputs.
 */
#include <dirent.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static unsigned replay_file(const char *path)
{
    FILE *f = fopen(path, "rb");
    struct stat st;
    uint8_t *data;

    if (!f || fstat(fileno(f), &st) < 0) {
        perror(path);
        exit(1);
    }
    /* exactly as long as the input, so that the sanitizers see its end */
    data = malloc((size_t)st.st_size + !st.st_size);
    if (!data || fread(data, 1, (size_t)st.st_size, f) != (size_t)st.st_size) {
        perror(path);
        exit(1);
    }
    fclose(f);
    LLVMFuzzerTestOneInput(data, (size_t)st.st_size);
    free(data);
    return 1;
}

static unsigned replay_dir(const char *path)
{
    DIR *d = opendir(path);
    unsigned count = 0;
    struct dirent *e;

    if (!d) {
        perror(path);
        exit(1);
    }
    while ((e = readdir(d))) {
        char name[4096];

        if (e->d_name[0] == '.')
            continue;
        snprintf(name, sizeof(name), "%s/%s", path, e->d_name);
        count += replay_file(name);
    }
    closedir(d);
    return count;
}

int main(int argc, char **argv)
{
    unsigned count = 0;
    struct stat st;

    for (int i = 1; i < argc; i++) {
        if (stat(argv[i], &st) < 0) {
            perror(argv[i]);
            return 1;
        }
        count +=
            S_ISDIR(st.st_mode) ? replay_dir(argv[i]) : replay_file(argv[i]);
    }
    printf("%u inputs\n", count);
    return 0;
}
