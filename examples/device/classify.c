/* Runs a model on numbers from standard input and prints the class that scores highest.
 *
 * Memory is static: nothing is allocated, so that this fits a program without a heap. */

#include "app_model.h"

#include <stdalign.h>
#include <stdio.h>

static alignas(APP_MODEL_WORKSPACE_ALIGNMENT) unsigned char
    workspace[APP_MODEL_WORKSPACE_BYTES];
static float pixels[APP_MODEL_INPUT_0_BYTES / sizeof(float)];
static float scores[APP_MODEL_OUTPUT_0_BYTES / sizeof(float)];

int main(void) {
    if (APP_MODEL_INPUT_COUNT != 1 || APP_MODEL_INPUT_0_TYPE != SECATEUR_FLOAT32 ||
        APP_MODEL_OUTPUT_COUNT != 1 || APP_MODEL_OUTPUT_0_TYPE != SECATEUR_FLOAT32) {
        fprintf(stderr, "this program is for one float32 input and output\n");
        return 2;
    }
    for (size_t i = 0; i < sizeof pixels / sizeof *pixels; i++) {
        if (scanf("%f", &pixels[i]) != 1) {
            fprintf(stderr, "%zu numbers are needed\n", sizeof pixels / sizeof *pixels);
            return 2;
        }
    }
    const secateur_input input = {pixels, sizeof pixels, NULL, 0};
    const secateur_output output = {scores, sizeof scores, NULL, 0};
    const secateur_call call = {
        .version = SECATEUR_INTERFACE,
        .inputs = &input,
        .input_count = 1,
        .outputs = &output,
        .output_count = 1,
        .workspace = workspace,
        .workspace_bytes = sizeof workspace,
    };
    int status = app_model_run(&call);
    if (status != 0) {
        fprintf(stderr, "%s\n", app_model_error_text(status));
        return 1;
    }
    size_t best = 0;
    for (size_t i = 1; i < sizeof scores / sizeof *scores; i++) {
        if (scores[i] > scores[best]) best = i;
    }
    printf("%zu\n", best);
    return 0;
}
