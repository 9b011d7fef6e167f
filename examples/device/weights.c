/* Runs a model whose weights lie in a file: mapped, so that they take memory only as they are read
 * and programs share it, or with -DPACKED decoded into memory.
 *
 *     weights app_model.weights < INPUTS > OUTPUTS
 */

#include "app_model.h"

#include <stdio.h>
#include <stdlib.h>

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>

static const void *map_file(const char *path, size_t *bytes) {
    struct stat status;
    int file = open(path, O_RDONLY);
    if (file < 0 || fstat(file, &status) != 0 || status.st_size < 1) return NULL;
    *bytes = (size_t)status.st_size;
    void *memory = mmap(NULL, *bytes, PROT_READ, MAP_PRIVATE, file, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

int main(int count, char **words) {
    static _Alignas(APP_MODEL_WORKSPACE_ALIGNMENT) unsigned char
        workspace[APP_MODEL_WORKSPACE_BYTES], in[APP_MODEL_INPUT_0_BYTES],
        out[APP_MODEL_OUTPUT_0_BYTES];
    size_t bytes = 0;
    const void *weights = count == 2 ? map_file(words[1], &bytes) : NULL;
    if (weights == NULL) {
        fprintf(stderr, "a file of weights is needed\n");
        return 1;
    }
#ifdef PACKED
    static _Alignas(64) unsigned char decoded[APP_MODEL_WEIGHTS_BYTES];
    if (app_model_unpack_weights(weights, bytes, decoded, sizeof decoded) != 0) {
        fprintf(stderr, "the weights are damaged, or another model's\n");
        return 1;
    }
    weights = decoded;
    bytes = sizeof decoded;
#endif
    if (fread(in, 1, sizeof in, stdin) != sizeof in) {
        fprintf(stderr, "%zu bytes are needed\n", sizeof in);
        return 1;
    }
    const secateur_input input = {in, sizeof in, NULL, 0};
    const secateur_output output = {out, sizeof out, NULL, 0};
    const secateur_call call = {
        .version = SECATEUR_INTERFACE,
        .inputs = &input,
        .input_count = 1,
        .outputs = &output,
        .output_count = 1,
        .workspace = workspace,
        .workspace_bytes = sizeof workspace,
        .weights = weights,
        .weights_bytes = bytes,
    };
    int status = app_model_run(&call);
    if (status != 0) {
        fprintf(stderr, "%s\n", app_model_error_text(status));
        return 1;
    }
    return fwrite(out, 1, sizeof out, stdout) == sizeof out ? 0 : 1;
}
