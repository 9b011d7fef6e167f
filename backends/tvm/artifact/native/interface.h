/* What all libraries that secateur makes have in common. One program may hold several. */
#ifndef SECATEUR_INTERFACE
#define SECATEUR_INTERFACE 2

#include <stddef.h>
#include <stdint.h>

/* A tensor in row-major order without gaps, at an address aligned to its elements. */
typedef struct {
    const void *data;
    size_t bytes;              /* of the memory at `data` */
    const int64_t *dimensions; /* NULL: those of the model, for one sample */
    size_t rank;               /* how many dimensions; unused without them */
} secateur_input;

typedef struct {
    void *data;
    size_t bytes;        /* of the memory at `data`: at least what the result takes */
    int64_t *dimensions; /* NULL, or memory for as many as the model says: a run writes them */
    size_t rank;         /* how many dimensions there is memory for */
} secateur_output;

/* Threads that the caller has. `run` calls `task(job, index, worker)` once for each index from 0
 * up to before `count`, in any order and in parallel or not, and returns when all calls have.
 * `worker`, less than `threads`, tells calls that run at the same time apart. */
typedef struct {
    void *pool;
    uint32_t threads; /* from 1 to 256 */
    void (*run)(
        void *pool, uint32_t count, void (*task)(void *job, uint32_t index, uint32_t worker),
        void *job);
} secateur_pool;

/* One run of a model. Set what isn't needed to zero. Outputs and the workspace overlap nothing
 * else that a call names: they are written while inputs and weights are read. An output that
 * continues an input (NAME_OUTPUT_i_CONTINUES) may be the same memory as that. */
typedef struct {
    uint32_t version; /* SECATEUR_INTERFACE: which fields there are; of version 1 up to `pool` */
    uint32_t threads; /* of the library's own, where it has them; 0 and 1: the caller alone */
    const secateur_input *inputs;
    const secateur_output *outputs;
    size_t input_count, output_count;
    void *workspace;
    size_t workspace_bytes;
    const void *weights; /* NULL: those in the library */
    size_t weights_bytes;
    const secateur_pool *pool; /* NULL: the caller alone, or `threads` */
    /* How many rows, along the axis that grows, there is memory for in inputs that outputs continue
     * and in these outputs, whatever their dimensions: rows lie as in a tensor of so many. 0: for as
     * many as there are. */
    int64_t capacity;
} secateur_call;

/* A status is 0, or one of these and, from bit 8 on, the number of what it is about. */
enum {
    SECATEUR_OK = 0,
    /* Of a kernel, whose number in the list of calls follows: the values of the inputs. */
    SECATEUR_INDEX = 1,    /* an index is out of range */
    SECATEUR_VALUE = 2,    /* an operand's value isn't one that the model was compiled for */
    SECATEUR_LIMIT = 3,    /* an operand's value asks for more work than a run may do */
    SECATEUR_DIVISION = 4, /* an integer is divided by zero */
    SECATEUR_COUNT = 5,    /* the data lead to another number of results than is declared */
    SECATEUR_SIZE = 6,     /* the inputs' sizes aren't admitted */
    /* Of the call. */
    SECATEUR_BAD_CALL = 64,      /* no call, another version, or another number of tensors */
    SECATEUR_BAD_INPUT = 65,     /* input: no or misaligned data, other dimensions, too few bytes */
    SECATEUR_BAD_OUTPUT = 66,    /* output: likewise, or memory of another tensor's */
    SECATEUR_BAD_WORKSPACE = 67, /* no, misaligned or too small memory */
    SECATEUR_BAD_WEIGHTS = 68,   /* weights are needed, or are those of another model */
    SECATEUR_BAD_CPU = 69,       /* the CPU lacks instructions that the library uses */
    SECATEUR_BAD_POOL = 70       /* a pool without threads or a function, or that left out tasks */
};

typedef enum {
    SECATEUR_FLOAT16, SECATEUR_FLOAT32, SECATEUR_FLOAT64, SECATEUR_BFLOAT16,
    SECATEUR_INT8, SECATEUR_INT16, SECATEUR_INT32, SECATEUR_INT64,
    SECATEUR_UINT8, SECATEUR_UINT16, SECATEUR_UINT32, SECATEUR_UINT64, SECATEUR_BOOL
} secateur_type;

/* What a model says of an input or output: `real = scale * (integer - zero_point)` where it
 * holds quantized numbers, else `scale` is 0. Of a batch `dimensions[0]` is one sample's, 1.
 * A dimension of -1 is one that only a run fixes: then `bytes` is 0, each call of the model has the
 * dimensions of its inputs, and `NAME_shapes` says those of its outputs. */
typedef struct {
    const char *name;
    secateur_type type;
    uint32_t rank;
    const int64_t *dimensions;
    size_t bytes;
    uint32_t is_batch; /* whether the first dimension may be any number of samples */
    int32_t zero_point;
    double scale;
} secateur_tensor;

/* All that a library says of its model, for programs that are written for any. */
typedef struct {
    uint32_t version; /* SECATEUR_INTERFACE of the library */
    const char *digest; /* of weights, kernels and interface: equal to the header's, or they are of
                         * different models */
    const char *name, *target;
    int (*run)(const secateur_call *call);
    size_t (*workspace_bytes)(const secateur_call *call);
    const char *(*error_text)(int status);
    const secateur_tensor *inputs, *outputs;
    size_t input_count, output_count;
    const char *const *labels;
    size_t label_count;
    size_t weights_bytes; /* of the weights that each call is given; 0: they are in the library */
} secateur_model;

#elif SECATEUR_INTERFACE != 2
#error "headers of libraries with different interfaces: compile the older model anew"
#endif
