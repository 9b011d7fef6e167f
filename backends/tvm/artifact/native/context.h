/* What the entry hands to parallel loops, and what shares them out. No header of the system is
 * needed: the entry is compiled without any. */

#ifndef SECATEUR_CONTEXT
#define SECATEUR_CONTEXT

#define HIDDEN __attribute__((visibility("hidden")))

typedef struct secateur_context secateur_context;

/* Runs a task of a loop, of `tasks` in all. Returns a fault, 0 for none. */
typedef int (*secateur_body)(void *data, unsigned char *scratch, int task, int tasks);

/* Runs all tasks of a loop. Returns the fault of one that fails, else 0. */
typedef int (*secateur_sharing)(const secateur_context *context, secateur_body body, void *data);

/* How loops are shared out: threads to use, and memory that each of them has for itself, one after
 * the other; the caller's threads (a `secateur_pool`), where it has some. */
struct secateur_context {
    secateur_sharing share;
    int threads;
    unsigned char *scratch;
    __SIZE_TYPE__ scratch_bytes;
    const void *pool;
    int *misuse; /* where a pool that doesn't do what it promises is noted, as a status */
};

/* Their number changes with the structure above: libraries that other versions of secateur made
 * may be in the same program. */
HIDDEN int secateur_share_in_pool_1(const secateur_context *, secateur_body, void *);
HIDDEN int secateur_share_threads_1(const secateur_context *, secateur_body, void *);

/* Weights that are packed, into memory: whether they are intact. */
HIDDEN int secateur_unpack_1(
    const unsigned char *packed, __SIZE_TYPE__ bytes, unsigned char *weights, __SIZE_TYPE__ room);

#endif
