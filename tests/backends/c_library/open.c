/* Runs a model by a C library whose sizes a run fixes, in C99 and for any such library: compiled
 * with -DHEADER='"NAME.h"' -DMODEL=NAME
 *
 *     open INPUTS OUTPUTS
 *
 * INPUTS holds for each input its dimensions, of 8 bytes, and its elements; OUTPUTS is written
 * likewise. Memory has exactly the bytes that the library asks for, between guards of other bytes,
 * which must be as they were afterwards. */

#include HEADER

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "guarded.h"
#include "named.h"

enum { MOST = 16, RANK = 8 };

static size_t item_bytes(secateur_type type) {
    switch (type) {
    case SECATEUR_FLOAT64: case SECATEUR_INT64: case SECATEUR_UINT64: return 8;
    case SECATEUR_FLOAT32: case SECATEUR_INT32: case SECATEUR_UINT32: return 4;
    case SECATEUR_INT8: case SECATEUR_UINT8: case SECATEUR_BOOL: return 1;
    default: return 2;
    }
}

static size_t bytes_of(const secateur_tensor *t, const int64_t *dimensions) {
    size_t bytes = item_bytes(t->type);
    for (uint32_t k = 0; k < t->rank; k++) bytes *= (size_t)dimensions[k];
    return bytes;
}

static int report(int status) {
    printf("%d %d %s\n", status & 255, status >> 8, ERROR_TEXT(status));
    return 1;
}

int main(int words, char **word) {
    int64_t given[MOST][RANK], found[MOST][RANK];
    secateur_input inputs[MOST];
    secateur_output outputs[MOST];
    secateur_call call = {0};
    if (words != 3 || THE_MODEL.input_count > MOST || THE_MODEL.output_count > MOST) return 2;
    FILE *file = fopen(word[1], "rb");
    if (file == NULL) return 8;
    for (size_t i = 0; i < THE_MODEL.input_count; i++) {
        const secateur_tensor *t = &THE_MODEL.inputs[i];
        if (fread(given[i], sizeof **given, t->rank, file) != t->rank) return 8;
        size_t bytes = bytes_of(t, given[i]);
        unsigned char *data = guarded(bytes);
        if (fread(data, 1, bytes, file) != bytes) return 8;
        inputs[i] = (secateur_input){data, bytes, given[i], t->rank};
    }
    fclose(file);
    for (size_t i = 0; i < THE_MODEL.output_count; i++) {
        outputs[i] = (secateur_output){NULL, 0, found[i], RANK};
    }
    call.version = SECATEUR_INTERFACE;
    call.inputs = inputs;
    call.outputs = outputs;
    call.input_count = THE_MODEL.input_count;
    call.output_count = THE_MODEL.output_count;
    int status = SHAPES(&call);
    size_t need = WORKSPACE_BYTES(&call);
    if ((status == 0) != (need > 0)) return 7;
    if (status != 0) return report(status);
    for (size_t i = 0; i < call.output_count; i++) {
        outputs[i].bytes = bytes_of(&THE_MODEL.outputs[i], found[i]);
        outputs[i].data = guarded(outputs[i].bytes);
        memset(found[i], 0, sizeof found[i]);
    }
    call.workspace = guarded(need);
    call.workspace_bytes = need - 1;
    if (RUN(&call) != SECATEUR_BAD_WORKSPACE) return 6;
    call.workspace_bytes = need;
    status = RUN(&call);
    if (status == 0) status = RUN(&call); /* once more in the same memory */
    if (!are_whole()) return 5;
    if (status != 0) return report(status);
    file = fopen(word[2], "wb");
    if (file == NULL) return 8;
    for (size_t i = 0; i < call.output_count; i++) {
        const secateur_tensor *t = &THE_MODEL.outputs[i];
        if (fwrite(found[i], sizeof **found, t->rank, file) != t->rank) return 8;
        size_t bytes = bytes_of(t, found[i]);
        if (bytes > outputs[i].bytes || fwrite(outputs[i].data, 1, bytes, file) != bytes) return 8;
    }
    for (int i = 0; i < count; i++) free(blocks[i]);
    return fclose(file) == 0 ? 0 : 8;
}
