/* Generates tokens by the C library of a decoder with caches, in place, in C99: compiled with
 * -DHEADER='"NAME.h"' -DMODEL=NAME
 *
 *     generate CAPACITY TOKENS TOKEN...
 *
 * prints the tokens that follow those given. The decoder is `cached_decoder.py` of two layers. The
 * caches are one block of memory each, which is input and output; memory has exactly the bytes that
 * the library asks for, between guards of other bytes. */

#include HEADER

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "guarded.h"
#include "named.h"

enum { CACHES = 4, RANK = 4, HEADS = 2, SIZE = 8, MOST = 64 };

int main(int words, char **word) {
    const int64_t capacity = words > 3 ? atoi(word[1]) : 0;
    const int64_t kept = capacity * HEADS * SIZE * (int64_t)sizeof(float);
    int64_t ids[MOST], rows = 0, count = words - 3;
    int64_t id_sizes[2] = {1, count}, logit_sizes[3], sizes[CACHES][RANK], found[CACHES][RANK];
    secateur_input inputs[1 + CACHES];
    secateur_output outputs[1 + CACHES];
    if (words < 4 || count > MOST || THE_MODEL.input_count != 1 + CACHES) return 2;
    for (int64_t i = 0; i < count; i++) ids[i] = atoi(word[3 + i]);
    for (int i = 0; i < CACHES; i++) {
        void *memory = guarded((size_t)kept);
        inputs[1 + i] = (secateur_input){memory, (size_t)kept, sizes[i], RANK};
        outputs[1 + i] = (secateur_output){memory, (size_t)kept, found[i], RANK};
    }
    secateur_call call = {0};
    call.version = SECATEUR_INTERFACE;
    call.inputs = inputs;
    call.outputs = outputs;
    call.input_count = call.output_count = 1 + CACHES;
    call.capacity = capacity;
    for (int left = atoi(word[2]); left > 0; left--) {
        inputs[0] = (secateur_input){ids, (size_t)count * sizeof *ids, id_sizes, 2};
        for (int i = 0; i < CACHES; i++) {
            const int64_t own[RANK] = {1, HEADS, rows, SIZE};
            memcpy(sizes[i], own, sizeof own);
        }
        id_sizes[1] = count;
        outputs[0] = (secateur_output){NULL, 0, logit_sizes, 3};
        int status = SHAPES(&call);
        if (status != 0) return printf("%d %s\n", status, ERROR_TEXT(status)), 1;
        const int64_t vocabulary = logit_sizes[2];
        outputs[0].bytes = (size_t)(count * vocabulary) * sizeof(float);
        outputs[0].data = guarded(outputs[0].bytes);
        call.workspace_bytes = WORKSPACE_BYTES(&call);
        call.workspace = guarded(call.workspace_bytes);
        status = RUN(&call);
        if (status != 0) return printf("%d %s\n", status, ERROR_TEXT(status)), 1;
        if (!are_whole()) return 5;
        const float *scores = (const float *)outputs[0].data + (count - 1) * vocabulary;
        int64_t best = 0;
        for (int64_t i = 1; i < vocabulary; i++) {
            if (scores[i] > scores[best]) best = i;
        }
        rows += count, count = 1, ids[0] = best;
        if (found[0][2] != rows) return 6;
        printf("%d ", (int)best);
    }
    return 0;
}
