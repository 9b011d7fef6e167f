/* Runs a model's C library twice, the second time between markers; outputs go to a file.
 *
 *     own INPUTS OUTPUTS
 *
 * Compiled with -DHEADER='"model.h"' for a library that is called "model". */

#include HEADER

#include <stdio.h>
#include <stdlib.h>

#include "mark.h"

enum { MOST = 64, RANK = 16 };

int main(int words, char **word) {
    if (words != 3) return 2;
    secateur_input inputs[MOST];
    secateur_output outputs[MOST];
    int64_t dimensions[MOST][RANK];
    secateur_call call = {0};
    FILE *file = fopen(word[1], "rb");
    if (file == NULL) return 3;
    for (int i = 0; model_inputs[i].name != NULL; i++) {
        size_t bytes = model_inputs[i].bytes;
        void *data = aligned_alloc(64, (bytes + 63) / 64 * 64 + 64);
        if (data == NULL || fread(data, 1, bytes, file) != bytes) return 3;
        for (uint32_t k = 0; k < model_inputs[i].rank; k++) {
            dimensions[i][k] = model_inputs[i].dimensions[k];
        }
        secateur_input input = {data, bytes, dimensions[i], model_inputs[i].rank};
        inputs[call.input_count++] = input;
    }
    fclose(file);
    static int64_t found[MOST][RANK];
    for (int i = 0; model_outputs[i].name != NULL; i++) {
        size_t bytes = model_outputs[i].bytes;
        secateur_output output = {aligned_alloc(64, (bytes + 63) / 64 * 64 + 64), bytes, found[i], RANK};
        outputs[call.output_count++] = output;
    }
    call.version = SECATEUR_INTERFACE;
    call.inputs = inputs;
    call.outputs = outputs;
    call.workspace_bytes = model_workspace_bytes(&call);
    call.workspace = aligned_alloc(64, (call.workspace_bytes + 63) / 64 * 64 + 64);
    for (int run = 0; run < 2; run++) {
        if (run == 1) MARK();
        int status = model_run(&call);
        if (run == 1) MARK();
        if (status != 0) {
            fprintf(stderr, "%s\n", model_error_text(status));
            return 4;
        }
    }
    file = fopen(word[2], "wb");
    for (size_t i = 0; i < call.output_count; i++) {
        fwrite(outputs[i].data, 1, outputs[i].bytes, file);
    }
    return fclose(file) == 0 ? 0 : 5;
}
