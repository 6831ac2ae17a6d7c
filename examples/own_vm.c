/* SPDX-License-Identifier: MIT */
/*
 * A toy VMM that captures its memory while it runs, and restores it:
 *
 *     own_vm DIR        (a directory that is not there yet)
 *
 * Its "vCPUs" are threads. Each counts, and writes every number into the next
 * page of its share of the RAM; the "device state" is where each one is. So
 * what every page must hold follows from the device state, and a capture that
 * is not of one instant is found out.
 */
#include <qstill-memory.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define VCPUS 4
#define PAGE  4096
#define PAGES 4096 /* of each vCPU: 16 MiB */
#define SIZE  ((size_t)VCPUS * PAGES * PAGE)

struct vcpu {
    struct vm *vm;
    int number;
};

struct vm {
    unsigned char *ram;
    uint64_t count[VCPUS]; /* the device state */
    pthread_t thread[VCPUS];
    pthread_rwlock_t running; /* held for reading by each vCPU that runs */
    int end;
    struct vcpu vcpu[VCPUS];
};

static uint64_t *cell(struct vm *vm, int vcpu, uint64_t n)
{
    return (uint64_t *)(vm->ram + (vcpu * PAGES + n % PAGES) * PAGE);
}

static void *run_vcpu(void *arg)
{
    struct vcpu *v = arg;
    struct vm *vm = v->vm;

    while (!__atomic_load_n(&vm->end, __ATOMIC_ACQUIRE)) {
        uint64_t n = vm->count[v->number] + 1;

        pthread_rwlock_rdlock(&vm->running);
        *cell(vm, v->number, n) = n;
        __atomic_store_n(&vm->count[v->number], n, __ATOMIC_RELEASE);
        pthread_rwlock_unlock(&vm->running);
    }
    return NULL;
}

static void start(struct vm *vm)
{
    vm->end = 0;
    for (int i = 0; i < VCPUS; i++) {
        vm->vcpu[i] = (struct vcpu){vm, i};
        pthread_create(&vm->thread[i], NULL, run_vcpu, &vm->vcpu[i]);
    }
}

static void end(struct vm *vm)
{
    __atomic_store_n(&vm->end, 1, __ATOMIC_RELEASE);
    for (int i = 0; i < VCPUS; i++)
        pthread_join(vm->thread[i], NULL);
}

/* Until each vCPU has been once more through its pages. */
static void let_run(struct vm *vm)
{
    for (int i = 0; i < VCPUS; i++) {
        uint64_t since = __atomic_load_n(&vm->count[i], __ATOMIC_ACQUIRE);

        while (__atomic_load_n(&vm->count[i], __ATOMIC_ACQUIRE) <
               since + PAGES + 1)
            usleep(1000);
    }
}

/* ---------------------------------------------- what the library asks for */

static int vm_pause(void *user, struct qstill_error *err)
{
    struct vm *vm = user;

    (void)err;
    return pthread_rwlock_wrlock(&vm->running) ? QSTILL_E_FAILED : 0;
}

static int vm_resume(void *user, struct qstill_error *err)
{
    struct vm *vm = user;

    (void)err;
    return pthread_rwlock_unlock(&vm->running) ? QSTILL_E_FAILED : 0;
}

static int vm_save(void *user, int fd, struct qstill_error *err)
{
    struct vm *vm = user;
    ssize_t n = write(fd, vm->count, sizeof(vm->count));

    (void)err;
    return n == sizeof(vm->count) ? 0 : QSTILL_E_FAILED;
}

static int vm_load(void *user, const void *state, size_t length,
                   struct qstill_error *err)
{
    struct vm *vm = user;

    (void)err;
    if (length != sizeof(vm->count))
        return QSTILL_E_CORRUPT;
    memcpy(vm->count, state, length);
    return 0;
}

/* ------------------------------------------------------------------ main */

static int check(struct vm *vm)
{
    for (int i = 0; i < VCPUS; i++)
        for (uint64_t k = 0; k < PAGES && k < vm->count[i]; k++)
            if (*cell(vm, i, vm->count[i] - k) != vm->count[i] - k)
                return 0;
    return 1;
}

static void run(struct qstill_job **job, int r, struct qstill_error *err)
{
    if (r == 0 && qstill_job_run(*job, NULL, NULL, err) == 0)
        return;
    fprintf(stderr, "own_vm: %s\n", err->message);
    exit(1);
}

int main(int argc, char **argv)
{
    struct vm vm = {.end = 0};
    struct qstill_vmm vmm = {sizeof(vmm), &vm,     vm_pause,
                             vm_resume,   vm_save, vm_load};
    struct qstill_region ram = {"ram", NULL, SIZE, PAGE, 0};
    const struct qstill_memory_result *got;
    pthread_rwlockattr_t attr;
    struct qstill_error err;
    struct qstill_job *job;

    if (argc != 2)
        return fprintf(stderr, "usage: own_vm DIR\n"), 2;
    vm.ram = ram.address = mmap(NULL, SIZE, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (vm.ram == MAP_FAILED)
        return perror("own_vm"), 1;
    /* Readers must not starve the one that wants to pause. */
    pthread_rwlockattr_init(&attr);
    pthread_rwlockattr_setkind_np(&attr,
                                  PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&vm.running, &attr);
    start(&vm);
    let_run(&vm);
    run(&job, qstill_memory_capture(argv[1], &ram, 1, &vmm, NULL, &job, &err),
        &err);
    got = qstill_memory_result(job);
    printf(
        "captured, mode %s, pause %.1f ms, %llu writes waited, one %.2f ms\n",
        got->mode, got->pause_ms, (unsigned long long)got->faults,
        got->longest_stall_ms);
    qstill_job_free(job);
    let_run(&vm); /* it still does */
    end(&vm);

    memset(vm.ram, 0xaa, SIZE);
    memset(vm.count, 0, sizeof(vm.count));
    run(&job, qstill_memory_restore(argv[1], &ram, 1, &vmm, &job, &err), &err);
    qstill_job_free(job);
    if (!check(&vm))
        return fprintf(stderr, "own_vm: this is not one instant\n"), 1;
    start(&vm);
    let_run(&vm);
    end(&vm);
    printf("restored, and running on: %s\n", check(&vm) ? "ok" : "NOT OK");
    return !check(&vm);
}
