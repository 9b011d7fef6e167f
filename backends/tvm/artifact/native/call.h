/* Checks what a caller of a library passes, before anything is computed. Part of the entry. */

#include <stddef.h>
#include <stdint.h>

/* What a tensor has to be; its dimensions lie in a common table from `first` on. */
typedef struct {
    size_t bytes;
    uint32_t first, rank;
    uint8_t alignment, is_batch;
} Expected;

static int secateur_is_aligned(const void *address, size_t alignment) {
    return (uintptr_t)address % alignment == 0;
}

/* Whether a tensor's dimensions are those expected, but for the number of samples of a batch,
 * which is `*samples`, or is noted there where that is negative. */
static int secateur_fits(
    const int64_t *dimensions, size_t rank, const Expected *e, const int64_t *table,
    int64_t *samples
) {
    int64_t own = 1;
    if (dimensions != NULL) {
        if (rank != e->rank) return 0;
        for (size_t i = e->is_batch; i < rank; i++) {
            if (dimensions[i] != table[e->first + i]) return 0;
        }
        if (e->is_batch) own = dimensions[0];
    }
    if (!e->is_batch) return 1;
    if (*samples < 0) *samples = own;
    return own >= 0 && own == *samples;
}

/* Whether `bytes` hold `count` times what is expected. */
static int secateur_holds(size_t bytes, const Expected *e, int64_t count) {
    return count == 0 || e->bytes == 0 || (uint64_t)count <= bytes / e->bytes;
}

static int secateur_check_inputs(
    const secateur_input *inputs, const Expected *expected, const int64_t *table, int count,
    int64_t *samples
) {
    for (int i = 0; i < count; i++) {
        const secateur_input *t = &inputs[i];
        const Expected *e = &expected[i];
        if (!secateur_fits(t->dimensions, t->rank, e, table, samples)) return SECATEUR_BAD_INPUT | i << 8;
        int64_t pieces = e->is_batch ? *samples : 1;
        int is_empty = pieces == 0 || e->bytes == 0;
        if ((t->data == NULL && !is_empty) || !secateur_is_aligned(t->data, e->alignment) ||
            !secateur_holds(t->bytes, e, pieces)) {
            return SECATEUR_BAD_INPUT | i << 8;
        }
    }
    return 0;
}

static int secateur_check_outputs(
    const secateur_output *outputs, const Expected *expected, int count, int64_t samples
) {
    for (int i = 0; i < count; i++) {
        const secateur_output *t = &outputs[i];
        const Expected *e = &expected[i];
        int64_t pieces = e->is_batch ? samples : 1;
        int is_empty = pieces == 0 || e->bytes == 0;
        if ((t->data == NULL && !is_empty) || !secateur_is_aligned(t->data, e->alignment) ||
            !secateur_holds(t->bytes, e, pieces) || (t->dimensions != NULL && t->rank < e->rank)) {
            return SECATEUR_BAD_OUTPUT | i << 8;
        }
    }
    return 0;
}

static void secateur_write_dimensions(
    const secateur_output *outputs, const Expected *expected, const int64_t *table, int count,
    int64_t samples
) {
    for (int i = 0; i < count; i++) {
        const Expected *e = &expected[i];
        if (outputs[i].dimensions == NULL) continue;
        for (size_t k = 0; k < e->rank; k++) outputs[i].dimensions[k] = table[e->first + k];
        if (e->is_batch) outputs[i].dimensions[0] = samples;
    }
}
