/* What a call's dimensions say where only a run fixes sizes. Part of the entry, after `call.h`. */

/* Write to `dimensions` those of all inputs, of one sample where they have several. `known` are the
 * model's, -1 where they are open. */
static int secateur_read_dimensions(
    const secateur_input *inputs, const Expected *expected, const int64_t *known, int count,
    int64_t *dimensions
) {
    for (int i = 0; i < count; i++) {
        const secateur_input *t = &inputs[i];
        const Expected *e = &expected[i];
        if (t->dimensions != NULL && t->rank != e->rank) return SECATEUR_BAD_INPUT | i << 8;
        for (uint32_t k = 0; k < e->rank; k++) {
            int64_t size = known[e->first + k];
            if (t->dimensions != NULL && !(k == 0 && e->is_batch)) size = t->dimensions[k];
            if (size < 0) return SECATEUR_BAD_INPUT | i << 8;
            dimensions[e->first + k] = size;
        }
    }
    return 0;
}

/* Write to `found` what tensors of these dimensions have to be; `expected` has the bytes of one
 * element. Dimensions have been checked: no tensor has 2^31 elements. */
static int secateur_count_bytes(
    const Expected *expected, const int64_t *dimensions, int count, int status, Expected *found
) {
    for (int i = 0; i < count; i++) {
        uint64_t bytes = expected[i].bytes;
        for (uint32_t k = 0; k < expected[i].rank; k++) {
            bytes *= (uint64_t)dimensions[expected[i].first + k];
        }
        if (bytes > SIZE_MAX / 2) return status | i << 8;
        found[i] = expected[i];
        found[i].bytes = (size_t)bytes;
    }
    return 0;
}

/* How many samples the inputs have, all the same number; negative where they have none. */
static int secateur_count_samples(
    const secateur_input *inputs, const Expected *expected, const int64_t *dimensions, int count,
    int64_t *samples
) {
    for (int i = 0; i < count; i++) {
        const secateur_input *t = &inputs[i];
        if (!secateur_fits(t->dimensions, t->rank, &expected[i], dimensions, samples)) {
            return SECATEUR_BAD_INPUT | i << 8;
        }
    }
    return 0;
}

/* Whether there is memory for the dimensions of all outputs that ask for them. */
static int secateur_check_ranks(const secateur_output *outputs, const Expected *expected, int count) {
    for (int i = 0; i < count; i++) {
        if (outputs[i].dimensions != NULL && outputs[i].rank < expected[i].rank) {
            return SECATEUR_BAD_OUTPUT | i << 8;
        }
    }
    return 0;
}

/* Rows that the memory of caches has room for, as far as the caller says; 0: those that they hold. */
static int64_t secateur_capacity(const secateur_call *call) {
    return call->version < 2 ? 0 : call->capacity;
}
