/* Parallel loops run on threads that the caller has (`secateur_pool`). */

#include <stdint.h>

#include "context.h"
#include "interface.h"

enum { TASKS_PER_WORKER = 4 };

typedef struct {
    const secateur_context *context;
    secateur_body body;
    void *data;
    int tasks, fault, done;
} PoolJob;

static void run_pool_task(void *job, uint32_t index, uint32_t worker) {
    PoolJob *j = job;
    const secateur_pool *pool = j->context->pool;
    if (index >= (uint32_t)j->tasks || worker >= pool->threads) return;
    unsigned char *scratch = j->context->scratch + worker * j->context->scratch_bytes;
    int fault = j->body(j->data, scratch, (int)index, j->tasks);
    if (fault != 0) __atomic_store_n(&j->fault, fault, __ATOMIC_RELAXED);
    __atomic_fetch_add(&j->done, 1, __ATOMIC_RELAXED);
}

int secateur_share_in_pool_1(const secateur_context *context, secateur_body body, void *data) {
    const secateur_pool *pool = context->pool;
    PoolJob job = {context, body, data, (int)pool->threads * TASKS_PER_WORKER, 0, 0};
    pool->run(pool->pool, (uint32_t)job.tasks, run_pool_task, &job);
    if (__atomic_load_n(&job.done, __ATOMIC_RELAXED) != job.tasks) {
        *context->misuse = SECATEUR_BAD_POOL;
    }
    return __atomic_load_n(&job.fault, __ATOMIC_RELAXED);
}
