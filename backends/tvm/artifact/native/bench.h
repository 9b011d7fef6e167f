/* What a bench program measures: generated for each model. */
#ifndef SECATEUR_BENCH
#define SECATEUR_BENCH

#include "interface.h"

extern const secateur_model *const bench_model;
extern const unsigned char bench_data[]; /* inputs, outputs and weights, each aligned to 64 */
extern const size_t bench_inputs[], bench_outputs[], bench_weights;
extern const int64_t bench_samples;       /* of a batch */
extern const int64_t bench_dimensions[];  /* of all inputs, one after the other */
extern const size_t bench_output_bytes[];
extern const double bench_tolerance;
extern const char *const bench_calls[]; /* of kernels: fields of JSON */
extern const size_t bench_call_count;

#endif
