/* Threads that share the parallel loops of kernels: part of artifacts that have any.
 *
 * A parallel loop is cut into more tasks than there are threads. Every thread has a share,
 * the same part of every loop, so that what it wrote is near when it reads it; when its own
 * tasks are done it takes those that others have not begun, so that a thread that another
 * process keeps off its CPU delays the others by one task at most. */

#define _GNU_SOURCE
#include <stdatomic.h>
#include <stdint.h>
#include <stddef.h>
#ifdef SECATEUR_BIONIC
#include "bionic.h"
#else
#include <pthread.h>
#include <signal.h>
#include <unistd.h>
#endif

#include "context.h"

enum {
    TASKS_PER_THREAD = 8,
    MOST_THREADS = 256,
    SPINS = 2000, /* how often a thread looks for news before it sleeps: some 40 us */
    CACHE_LINE = 64,
};

/* The job at hand. Each thread's ticket holds the job's number in the upper half and its
 * next task in the lower one: taking a task is one exchange, which fails if the job is
 * another by now. A job is done when no task is left, so whoever took one may read it. */
typedef struct {
    _Alignas(CACHE_LINE) _Atomic uint64_t next;
} Ticket;

static Ticket tickets[MOST_THREADS];
static secateur_body job_body;
static void *job_data;
static const secateur_context *job_context;
static int32_t job_tasks;
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

static void pause_briefly(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
    __asm__ volatile("yield");
#endif
}

static void run_tasks(uint32_t job, uint32_t owner, uint32_t self) {
    uint32_t end = (owner + 1) * TASKS_PER_THREAD;
    for (;;) {
        uint64_t now = atomic_load(&tickets[owner].next);
        uint32_t task = (uint32_t)now;
        if (now >> 32 != job || task >= end) return;
        if (!atomic_compare_exchange_weak(&tickets[owner].next, &now, now + 1)) continue;
        unsigned char *scratch = job_context->scratch + self * job_context->scratch_bytes;
        int fault = job_body(job_data, scratch, (int32_t)task, job_tasks);
        if (fault != 0) atomic_store(&failure, fault);
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
    for (uint32_t i = self; i < count; i++) run_tasks(job, i, self);
    for (uint32_t i = 0; i < self; i++) run_tasks(job, i, self);
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
 * back, the tasks of a job that was under way with it, which new workers would begin, and
 * other threads of the child do without workers meanwhile. */
static int owns_state(void) {
    pid_t self = getpid(), owner = atomic_load(&process);
    if (owner == self) return 1;
    if (owner == -self || !atomic_compare_exchange_strong(&process, &owner, -self)) return 0;
    if (owner != 0) {
        lock = (pthread_mutex_t)PTHREAD_MUTEX_INITIALIZER;
        wake = finished = (pthread_cond_t)PTHREAD_COND_INITIALIZER;
        atomic_store(&sleepers, 0);
        atomic_store(&waiting, 0);
        for (int i = 0; i < MOST_THREADS; i++) atomic_store(&tickets[i].next, 0);
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

int secateur_share_threads_1(const secateur_context *context, secateur_body body, void *data) {
    int threads = context->threads > MOST_THREADS ? MOST_THREADS : context->threads;
    if (threads < 2 || !owns_state() || atomic_flag_test_and_set(&taken)) {
        return body(data, context->scratch, 0, 1);
    }
    start_workers(threads - 1);
    uint32_t job = atomic_load(&job_number) + 1, count = (uint32_t)threads;
    job_body = body;
    job_data = data;
    job_context = context;
    job_tasks = threads * TASKS_PER_THREAD;
    atomic_store(&failure, 0);
    atomic_store(&left, job_tasks);
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
    int fault = atomic_load(&failure);
    atomic_flag_clear(&taken);
    return fault;
}
