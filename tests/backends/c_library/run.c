/* Runs a model by its C library on inputs from a file, in C99 and for any library: compiled with
 * -DHEADER='"NAME.h"' -DMODEL(x)=NAME_##x
 *
 *     run INPUTS OUTPUTS SAMPLES THREADS own|pool|few|wrong [WEIGHTS]
 *
 * INPUTS holds all inputs one after the other; OUTPUTS is written likewise. Every tensor lies
 * between guards of other bytes, the workspace too, which must be as they were afterwards. */

#include HEADER

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "guarded.h"
#include "named.h"

#define INPUTS NAMED(MODEL, _inputs)
#define OUTPUTS NAMED(MODEL, _outputs)

enum { MOST = 64, RANK = 16 };

/* A pool without threads, which runs tasks in another order and as different workers. */
static void run_backwards(
    void *pool, uint32_t number, void (*task)(void *, uint32_t, uint32_t), void *job
) {
    uint32_t workers = *(uint32_t *)pool;
    for (uint32_t i = number; i > 0; i--) task(job, i - 1, i % workers);
}

/* Pools that break their promise: one that leaves out a task, one that numbers workers wrongly. */
static void run_few(
    void *pool, uint32_t number, void (*task)(void *, uint32_t, uint32_t), void *job
) {
    (void)pool;
    for (uint32_t i = 1; i < number; i++) task(job, i, 0);
}

static void run_wrong(
    void *pool, uint32_t number, void (*task)(void *, uint32_t, uint32_t), void *job
) {
    for (uint32_t i = 0; i < number; i++) task(job, i, i % (*(uint32_t *)pool + 1));
}

static void *read_file(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    if (file == NULL) exit(8);
    fseek(file, 0, SEEK_END);
    *bytes = (size_t)ftell(file);
    rewind(file);
    unsigned char *content = guarded(*bytes);
    if (fread(content, 1, *bytes, file) != *bytes) exit(8);
    fclose(file);
    return content;
}

int main(int words, char **word) {
    if (words < 6) return 7;
    int64_t samples = atoi(word[3]);
    uint32_t threads = (uint32_t)atoi(word[4]);
    secateur_pool pool = {&threads, threads, run_backwards};
    secateur_input inputs[MOST];
    secateur_output outputs[MOST];
    int64_t dimensions[2 * MOST][RANK];
    secateur_call call = {0};
    size_t bytes, total = 0;
    unsigned char *given = read_file(word[1], &bytes);
    for (int i = 0; INPUTS[i].name != NULL; i++) {
        const secateur_tensor *t = &INPUTS[i];
        size_t own = t->bytes * (t->is_batch ? (size_t)samples : 1);
        unsigned char *data = guarded(own);
        memcpy(data, given + total, own);
        total += own;
        for (uint32_t k = 0; k < t->rank; k++) dimensions[i][k] = t->dimensions[k];
        if (t->is_batch) dimensions[i][0] = samples;
        secateur_input input = {data, own, dimensions[i], t->rank};
        inputs[call.input_count++] = input;
    }
    if (total != bytes) return 6;
    for (int i = 0; OUTPUTS[i].name != NULL; i++) {
        const secateur_tensor *t = &OUTPUTS[i];
        size_t own = t->bytes * (t->is_batch ? (size_t)samples : 1);
        secateur_output output = {guarded(own), own, dimensions[MOST + i], RANK};
        outputs[call.output_count++] = output;
    }
    call.version = SECATEUR_INTERFACE;
    call.inputs = inputs;
    call.outputs = outputs;
    if (strcmp(word[5], "few") == 0) pool.run = run_few;
    if (strcmp(word[5], "wrong") == 0) pool.run = run_wrong;
    if (strcmp(word[5], "own") != 0) call.pool = &pool;
    else call.threads = threads;
    if (words > 6) call.weights = read_file(word[6], &call.weights_bytes);
    call.workspace_bytes = WORKSPACE_BYTES(&call);
    call.workspace = guarded(call.workspace_bytes);
    for (int round = 0; round < 2; round++) {
        int status = RUN(&call);
        if (status != 0) {
            printf("%d %d %s\n", status & 255, status >> 8, ERROR_TEXT(status));
            return are_whole() ? 1 : 5;
        }
    }
    if (!are_whole()) return 5;
    for (size_t i = 0; i < call.output_count; i++) {
        for (uint32_t k = 0; k < OUTPUTS[i].rank; k++) {
            int64_t size = OUTPUTS[i].is_batch && k == 0 ? samples : OUTPUTS[i].dimensions[k];
            if (outputs[i].dimensions[k] != size) return 4;
        }
    }
    FILE *file = fopen(word[2], "wb");
    if (file == NULL) return 8;
    for (size_t i = 0; i < call.output_count; i++) {
        fwrite(outputs[i].data, 1, outputs[i].bytes, file);
    }
    return fclose(file) == 0 ? 0 : 8;
}
