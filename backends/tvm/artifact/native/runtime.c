/* What kernels need besides libc: threads to share their loops, scratch memory, and a way to
 * say why they fail.
 *
 * Part of every artifact. TVM's code generator calls these functions through pointers of
 * the names below.
 *
 * A parallel loop is cut into more tasks than there are threads. Every thread has a share,
 * the same part of every loop, so that what it wrote is near when it reads it; when its own
 * tasks are done it takes those that others have not begun, so that a thread that another
 * process keeps off its CPU delays the others by one task at most.
 *
 * A kernel that meets a fault notes its code and returns at once. What scratch memory it holds
 * then is given back by whoever called it: the entry, or the thread that ran a task. */

#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <unistd.h>

#define HIDDEN __attribute__((visibility("hidden")))

enum {
    TASKS_PER_THREAD = 8,
    MOST_THREADS = 256,
    SPINS = 2000,      /* how often a thread looks for news before it sleeps: some 40 us */
    STACK = 16 * 1024, /* bytes of scratch memory for each thread that need no allocation */
    ALIGNMENT = 64,
    OUT_OF_MEMORY = 255, /* the fault of a kernel that fails and notes none */
};

typedef struct {
    void *unused;
    int32_t tasks;
} Group;

typedef int (*Body)(int task, Group *group, void *data);

/* The job at hand. Each thread's ticket holds the job's number in the upper half and its
 * next task in the lower one: taking a task is one exchange, which fails if the job is
 * another by now. A job is done when no task is left, so whoever took one may read it. */
typedef struct {
    _Alignas(ALIGNMENT) _Atomic uint64_t next;
} Ticket;

static Ticket tickets[MOST_THREADS];
static Body job_body;
static void *job_data;
static Group job_group;
static atomic_uint job_number, sharers;
static atomic_int left, failure;

static atomic_flag taken = ATOMIC_FLAG_INIT;
static atomic_int sleepers, waiting;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER, finished = PTHREAD_COND_INITIALIZER;
static pthread_t handles[MOST_THREADS];
static int workers;
static atomic_int stopping;

/* The process that the workers belong to, negative while it prepares to have some. */
static _Atomic pid_t process;

static _Thread_local int threads = 1;

static void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
    __asm__ volatile("yield");
#endif
}

/* Scratch memory of this thread: bytes taken from its stack, and blocks on the heap. */
typedef struct Block {
    struct Block *before; /* the block itself begins ALIGNMENT bytes later */
} Block;

typedef struct {
    uint64_t top;
    Block *blocks;
} Scratch;

static _Thread_local _Alignas(ALIGNMENT) unsigned char stack[STACK];
static _Thread_local Scratch scratch;
static _Thread_local int fault;

HIDDEN int secateur_fail(int code);
int secateur_fail(int code) {
    fault = code;
    return 0;
}

static void release_blocks(Block *until) {
    while (scratch.blocks != until) {
        Block *block = scratch.blocks;
        scratch.blocks = block->before;
        free(block);
    }
}

/* The fault for which this thread's kernel failed. What it took since `before` is given back. */
static int take_fault(Scratch before) {
    int code = fault != 0 ? fault : OUT_OF_MEMORY;
    fault = 0;
    release_blocks(before.blocks);
    scratch.top = before.top;
    return code;
}

HIDDEN int secateur_fault(void);
int secateur_fault(void) {
    Scratch nothing = {0, NULL};
    return take_fault(nothing);
}

static void run_tasks(uint32_t job, uint32_t owner) {
    uint32_t end = (owner + 1) * TASKS_PER_THREAD;
    for (;;) {
        uint64_t now = atomic_load(&tickets[owner].next);
        uint32_t task = (uint32_t)now;
        if (now >> 32 != job || task >= end) return;
        if (!atomic_compare_exchange_weak(&tickets[owner].next, &now, now + 1)) continue;
        Scratch before = scratch;
        int status = job_body((int)task, &job_group, job_data);
        if (status != 0) atomic_store(&failure, take_fault(before));
        if (atomic_fetch_sub(&left, 1) == 1 && atomic_load(&waiting)) {
            pthread_mutex_lock(&lock);
            pthread_cond_signal(&finished);
            pthread_mutex_unlock(&lock);
        }
    }
}

/* Own tasks first, then what is left of the others'. */
static void work(uint32_t job, uint32_t self) {
    uint32_t count = atomic_load(&sharers);
    if (self >= count) return; /* fewer threads are wanted than there are workers */
    for (uint32_t i = self; i < count; i++) run_tasks(job, i);
    for (uint32_t i = 0; i < self; i++) run_tasks(job, i);
}

static void *run_worker(void *argument) {
    uint32_t self = (uint32_t)(uintptr_t)argument, done = 0;
    for (;;) {
        for (int spins = 0; spins < SPINS && atomic_load(&job_number) == done; spins++) {
            pause_briefly();
        }
        if (atomic_load(&job_number) == done) {
            pthread_mutex_lock(&lock);
            atomic_fetch_add(&sleepers, 1);
            while (atomic_load(&job_number) == done) pthread_cond_wait(&wake, &lock);
            atomic_fetch_sub(&sleepers, 1);
            pthread_mutex_unlock(&lock);
        }
        done = atomic_load(&job_number);
        if (atomic_load(&stopping)) return NULL;
        work(done, self);
    }
}

/* Start workers that are missing; with fewer than wanted the loops take longer. */
static void start_workers(int wanted) {
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (workers < wanted) {
        void *self = (void *)(uintptr_t)(workers + 1);
        if (pthread_create(&handles[workers], NULL, run_worker, self) != 0) break;
        workers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void announce(uint32_t job) {
    atomic_store(&job_number, job);
    if (atomic_load(&sleepers) > 0) {
        pthread_mutex_lock(&lock);
        pthread_cond_broadcast(&wake);
        pthread_mutex_unlock(&lock);
    }
}

/* Whether the state above is this process's own. A fork copies neither the workers nor the
 * threads that held the flag and the lock at that moment: the child's first launch sets all
 * back, and other threads of the child do without workers meanwhile. */
static int owns_state(void) {
    pid_t self = getpid(), owner = atomic_load(&process);
    if (owner == self) return 1;
    if (owner == -self || !atomic_compare_exchange_strong(&process, &owner, -self)) return 0;
    if (owner != 0) {
        lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
        wake = finished = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
        atomic_store(&sleepers, 0);
        atomic_store(&waiting, 0);
        workers = 0;
        atomic_flag_clear(&taken);
    }
    atomic_store(&process, self);
    return 1;
}

/* Before the code is unmapped, or the process ends: no worker may run it any more. A launch
 * under way, as another thread may have at the end of the process, keeps them. */
__attribute__((destructor)) static void stop_workers(void) {
    if (atomic_load(&process) != getpid() || atomic_flag_test_and_set(&taken)) return;
    atomic_store(&stopping, 1);
    announce(atomic_load(&job_number) + 1);
    while (workers > 0) pthread_join(handles[--workers], NULL);
}

static int run_alone(Body body, void *data) {
    Group group = {NULL, 1};
    return body(0, &group, data);
}

static int launch(Body body, void *data, int unused) {
    (void)unused;
    if (threads < 2 || !owns_state() || atomic_flag_test_and_set(&taken)) {
        return run_alone(body, data);
    }
    start_workers(threads - 1);
    uint32_t job = atomic_load(&job_number) + 1, count = (uint32_t)threads;
    job_body = body;
    job_data = data;
    job_group.tasks = threads * TASKS_PER_THREAD;
    atomic_store(&failure, 0);
    atomic_store(&left, job_group.tasks);
    atomic_store(&sharers, count);
    for (uint32_t i = 0; i < count; i++) {
        atomic_store(&tickets[i].next, (uint64_t)job << 32 | i * TASKS_PER_THREAD);
    }
    announce(job);
    work(job, 0);
    for (int spins = 0; spins < SPINS && atomic_load(&left) > 0; spins++) pause_briefly();
    if (atomic_load(&left) > 0) {
        pthread_mutex_lock(&lock);
        atomic_store(&waiting, 1);
        while (atomic_load(&left) > 0) pthread_cond_wait(&finished, &lock);
        atomic_store(&waiting, 0);
        pthread_mutex_unlock(&lock);
    }
    fault = atomic_load(&failure);
    atomic_flag_clear(&taken);
    return fault;
}

static void *allocate(int device, int index, uint64_t bytes, int code, int bits) {
    (void)device, (void)index, (void)code, (void)bits;
    bytes = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (bytes > STACK - scratch.top) {
        void *memory = NULL;
        if (posix_memalign(&memory, ALIGNMENT, ALIGNMENT + bytes) != 0) return NULL;
        Block *block = memory;
        block->before = scratch.blocks;
        scratch.blocks = block;
        return (unsigned char *)memory + ALIGNMENT;
    }
    scratch.top += bytes;
    return stack + scratch.top - bytes;
}

static int release(int device, int index, void *memory) {
    (void)device, (void)index;
    uintptr_t offset = (uintptr_t)memory - (uintptr_t)stack;
    if (offset < STACK) scratch.top = offset; /* what was taken last is given back first */
    else release_blocks(((Block *)((unsigned char *)memory - ALIGNMENT))->before);
    return 0;
}

HIDDEN int (*__TVMBackendParallelLaunch)(Body, void *, int) = launch;
HIDDEN void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = allocate;
HIDDEN int (*__TVMBackendFreeWorkspace)(int, int, void *) = release;

HIDDEN void use_threads(int count);
void use_threads(int count) {
    threads = count < 1 ? 1 : count > MOST_THREADS ? MOST_THREADS : count;
}
