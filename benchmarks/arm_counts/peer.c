/* Runs a model by ONNX Runtime twice, the second time between markers, on one thread.
 *
 *     peer LIBRARY MODEL INPUTS OUTPUTS NAME,TYPE,DIMENSION,... ... - NAME ...
 *
 * Inputs, then names of outputs; TYPE is ONNX's number. Outputs follow one another in a file.
 * The table of functions only ever grows, so that places in it are enough. */

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "mark.h"

enum {
    VERSION = 16,
    GET_ERROR_MESSAGE = 2,
    CREATE_ENV = 3,
    CREATE_SESSION = 7,
    RUN = 9,
    CREATE_SESSION_OPTIONS = 10,
    SET_INTRA_OP_NUM_THREADS = 24,
    CREATE_TENSOR_WITH_DATA = 49,
    GET_TENSOR_MUTABLE_DATA = 51,
    GET_TENSOR_ELEMENT_TYPE = 60,
    GET_TENSOR_SHAPE_ELEMENT_COUNT = 64,
    GET_TENSOR_TYPE_AND_SHAPE = 65,
    CREATE_CPU_MEMORY_INFO = 69,
    MOST = 64,
    RANK = 16
};

typedef struct {
    const void *const *(*get_api)(uint32_t);
    const char *(*version)(void);
} Base;

static const void *const *api;

#define CALL(index, ...) check(((void *(*)())(uintptr_t)api[index])(__VA_ARGS__))

static void check(void *status) {
    if (status == NULL) return;
    fprintf(stderr, "%s\n", ((const char *(*)(void *))(uintptr_t)api[GET_ERROR_MESSAGE])(status));
    exit(4);
}

static size_t element_bytes(int type) {
    static const unsigned char bytes[] = {0, 4, 1, 1, 2, 2, 4, 8, 0, 1, 2, 8, 4, 8};
    return type < (int)sizeof bytes ? bytes[type] : 0;
}

int main(int words, char **word) {
    if (words < 7) return 2;
    void *library = dlopen(word[1], RTLD_NOW);
    if (library == NULL) {
        fprintf(stderr, "%s\n", dlerror());
        return 3;
    }
    Base *(*base)(void) = (Base * (*)(void))(uintptr_t)dlsym(library, "OrtGetApiBase");
    api = base()->get_api(VERSION);
    void *env, *options, *session, *memory;
    CALL(CREATE_ENV, 3, "peer", &env);
    CALL(CREATE_SESSION_OPTIONS, &options);
    CALL(SET_INTRA_OP_NUM_THREADS, options, 1);
    CALL(CREATE_SESSION, env, word[2], options, &session);
    CALL(CREATE_CPU_MEMORY_INFO, 1, 0, &memory);
    const char *names[MOST], *wanted[MOST];
    void *inputs[MOST], *outputs[MOST] = {0};
    size_t count = 0, results = 0;
    int i = 5;
    FILE *file = fopen(word[3], "rb");
    if (file == NULL) return 3;
    for (; i < words && strcmp(word[i], "-") != 0; i++, count++) {
        char *end = strchr(word[i], ',');
        *end++ = 0;
        names[count] = word[i];
        int type = (int)strtol(end, &end, 10);
        int64_t dimensions[RANK];
        size_t rank = 0, bytes = element_bytes(type);
        while (*end == ',') {
            dimensions[rank] = strtol(end + 1, &end, 10);
            bytes *= (size_t)dimensions[rank++];
        }
        void *data = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
        if (fread(data, 1, bytes, file) != bytes) return 3;
        CALL(CREATE_TENSOR_WITH_DATA, memory, data, bytes, dimensions, rank, type, &inputs[count]);
    }
    fclose(file);
    for (i++; i < words; i++) wanted[results++] = word[i];
    for (int run = 0; run < 3; run++) {
        memset(outputs, 0, sizeof outputs);
        if (run == 2) MARK();
        CALL(RUN, session, (void *)0, names, inputs, count, wanted, results, outputs);
        if (run == 2) MARK();
    }
    file = fopen(word[4], "wb");
    for (size_t k = 0; k < results; k++) {
        void *shape, *data;
        size_t elements;
        int type;
        CALL(GET_TENSOR_TYPE_AND_SHAPE, outputs[k], &shape);
        CALL(GET_TENSOR_ELEMENT_TYPE, shape, &type);
        CALL(GET_TENSOR_SHAPE_ELEMENT_COUNT, shape, &elements);
        CALL(GET_TENSOR_MUTABLE_DATA, outputs[k], &data);
        fwrite(data, element_bytes(type), elements, file);
    }
    fclose(file);
    _Exit(0);
}
