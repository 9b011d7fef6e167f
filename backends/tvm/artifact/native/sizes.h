/* Sizes that only a run fixes: arithmetic that notices what is too large, and places of buffers. No
 * header of the system is needed. */

#ifndef SECATEUR_SIZES
#define SECATEUR_SIZES

typedef __INT64_TYPE__ secateur_size;

/* Numbers past this one are no sizes: products of two within it don't overflow. */
#define SECATEUR_MOST (((secateur_size)1 << 31) - 1)

static inline secateur_size secateur_bounded(secateur_size a, int *bad) {
    if (a >= -SECATEUR_MOST && a <= SECATEUR_MOST) return a;
    *bad = 1;
    return 0;
}

static inline secateur_size secateur_plus(secateur_size a, secateur_size b, int *bad) {
    return secateur_bounded(a, bad) + secateur_bounded(b, bad);
}

static inline secateur_size secateur_times(secateur_size a, secateur_size b, int *bad) {
    return secateur_bounded(a, bad) * secateur_bounded(b, bad);
}

static inline secateur_size secateur_floor(secateur_size a, secateur_size b, int *bad) {
    if (b < 1) *bad = 1;
    if (*bad) return 0;
    return a >= 0 ? a / b : -((b - 1 - a) / b);
}

static inline secateur_size secateur_min(secateur_size a, secateur_size b) { return a < b ? a : b; }

static inline secateur_size secateur_less(secateur_size a, secateur_size b) { return a < b; }

static inline secateur_size secateur_max(secateur_size a, secateur_size b) { return a > b ? a : b; }

static inline secateur_size secateur_equal(secateur_size a, secateur_size b) { return a == b; }

static inline secateur_size secateur_either(
    secateur_size condition, secateur_size a, secateur_size b
) {
    return condition != 0 ? a : b;
}

/* A quotient rounded towards zero. */
static inline secateur_size secateur_div(secateur_size a, secateur_size b, int *bad) {
    if (b == 0) *bad = 1;
    return *bad ? 0 : a / b;
}

/* The whole number of a size times a float, both given by 32 bits. */
static inline secateur_size secateur_scaled(secateur_size a, secateur_size bits) {
    union {
        unsigned int bits;
        float number;
    } scale = {(unsigned int)bits};
    float product = (float)a * scale.number;
    return product < (float)SECATEUR_MOST ? (secateur_size)product : SECATEUR_MOST;
}

/* Rows that a cache has room for beyond those that it holds, and all, by how many the caller says
 * that there are: 0 for as many as it holds. */
static inline secateur_size secateur_spare(secateur_size capacity, secateur_size rows) {
    return capacity == 0 ? 0 : capacity - rows;
}

static inline secateur_size secateur_held(secateur_size capacity, secateur_size rows) {
    return capacity == 0 ? rows : capacity;
}

/* Have the rows of a cache that are in an input, `outer` runs of `bytes`, in an output, too: nothing
 * to do where both are the same memory, whose runs are as far apart or one. */
static inline void secateur_keep(
    void *output, const void *input, secateur_size outer, secateur_size bytes,
    secateur_size before, secateur_size after
) {
    if (output == input || bytes < 1) return;
    for (secateur_size i = 0; i < outer; i++) {
        unsigned char *to = (unsigned char *)output + i * after;
        __builtin_memcpy(to, (const unsigned char *)input + i * before, (__SIZE_TYPE__)bytes);
    }
}

/* A buffer's calls, from the first that uses it to the last. */
typedef struct {
    int first, last;
} secateur_range;

#define SECATEUR_LINE 64

/* Bytes, rounded up to whole lines. */
static inline secateur_size secateur_lines(secateur_size bytes) {
    return (bytes < 1 ? 1 : (bytes + SECATEUR_LINE - 1) / SECATEUR_LINE) * SECATEUR_LINE;
}

/* Write to `at` where each of `count` buffers of `bytes` lies, so that no two overlap which are in
 * use during the same call; the bytes of all. Buffers are in the order of their first use, and each
 * takes the smallest gap that holds it. `live` has room for as many numbers. */
static inline secateur_size secateur_place(
    int count, const secateur_range *ranges, const secateur_size *bytes, secateur_size *at, int *live
) {
    secateur_size all = 0;
    int alive = 0; /* buffers in use, by their place */
    for (int i = 0; i < count; i++) {
        secateur_size need = secateur_lines(bytes[i]), end = 0, best = -1, least = 0;
        int kept = 0, slot = 0;
        for (int k = 0; k < alive; k++) {
            int other = live[k];
            if (ranges[other].last < ranges[i].first) continue;
            secateur_size gap = at[other] - end;
            if (gap >= need && (best < 0 || gap < least)) best = end, least = gap, slot = kept;
            end = at[other] + secateur_lines(bytes[other]);
            live[kept++] = other;
        }
        if (best < 0) best = end, slot = kept;
        for (int k = kept; k > slot; k--) live[k] = live[k - 1];
        live[slot] = i;
        alive = kept + 1;
        at[i] = best;
        if (best + need > all) all = best + need;
    }
    return all;
}

/* Write to `at` where each of `count` buffers lies, on top of those below it; the bytes of all. The
 * stack holds for each buffer, from the lowest on, its number, how many lie below it, and which. */
static inline secateur_size secateur_stack(
    int count, const unsigned short *stack, const secateur_size *bytes, secateur_size *at
) {
    secateur_size all = 0;
    for (int k = 0; k < count; k++) {
        int i = *stack++;
        secateur_size end = 0;
        for (int left = *stack++; left > 0; left--) {
            int below = *stack++;
            secateur_size top = at[below] + secateur_lines(bytes[below]);
            if (top > end) end = top;
        }
        at[i] = end;
        end += secateur_lines(bytes[i]);
        if (end > all) all = end;
    }
    return all;
}

#endif
