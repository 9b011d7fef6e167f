/* Inputs that outputs continue: which memory they may share. Part of the entry, after `call.h`. */

/* An output that continues an input, of `runs` runs of rows in a sample. */
typedef struct {
    int input, output;
    int64_t runs;
} secateur_cache;

static int secateur_overlap(const void *a, uint64_t a_bytes, const void *b, uint64_t b_bytes) {
    const uintptr_t p = (uintptr_t)a, q = (uintptr_t)b;
    if (a_bytes == 0 || b_bytes == 0) return 0;
    return p < q ? q - p < a_bytes : p - q < b_bytes;
}

static uint64_t secateur_all_bytes(const Expected *e, int64_t samples) {
    return e->bytes * (uint64_t)(e->is_batch ? samples : 1);
}

/* Whether an input may be the same memory as an output: one that it is continued by, and whose rows
 * lie where they did. */
static int secateur_may_share(
    const secateur_cache *caches, int count, int input, int output, const Expected *before,
    const Expected *after, int64_t samples
) {
    for (int i = 0; i < count; i++) {
        if (caches[i].input != input || caches[i].output != output) continue;
        if (before->is_batch != after->is_batch && samples > 1) return 0;
        const int64_t runs = caches[i].runs * (after->is_batch ? samples : 1);
        return runs <= 1 || before->bytes == after->bytes;
    }
    return 0;
}

/* Whether outputs lie apart from each other, from inputs but for those that they continue where the
 * caller wants it so, and from the workspace. */
static int secateur_check_apart(
    const secateur_call *call, const Expected *inputs, const Expected *outputs,
    const secateur_cache *caches, int count, int64_t samples
) {
    for (int o = 0; o < (int)call->output_count; o++) {
        const void *own = call->outputs[o].data;
        const uint64_t bytes = secateur_all_bytes(&outputs[o], samples);
        int overlap = secateur_overlap(own, bytes, call->workspace, call->workspace_bytes);
        for (int i = 0; i < o; i++) {
            const uint64_t others = secateur_all_bytes(&outputs[i], samples);
            overlap |= secateur_overlap(own, bytes, call->outputs[i].data, others);
        }
        for (int i = 0; i < (int)call->input_count; i++) {
            const void *other = call->inputs[i].data;
            if (!secateur_overlap(own, bytes, other, secateur_all_bytes(&inputs[i], samples))) continue;
            overlap |= own != other || !secateur_may_share(
                caches, count, i, o, &inputs[i], &outputs[o], samples);
        }
        if (overlap) return SECATEUR_BAD_OUTPUT | o << 8;
    }
    return 0;
}
