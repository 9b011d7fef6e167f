/* Measures a model on the device that it runs on, and prints JSON. Statically linked, it needs
 * nothing but a kernel:
 *
 *     NAME_bench [SECONDS [THREADS]]
 *
 * Inputs and what ONNX Runtime made of them are part of the program (`bench_*`, of a source that
 * is generated). The library in it is one whose calls can be timed, by `secateur_profile`. */

#define _GNU_SOURCE
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include <linux/perf_event.h>

#include "bench.h"

enum { MOST_RUNS = 100000, LEAST_RUNS = 5, WARMUP = 3, PROFILED = 20 };

uint64_t *secateur_profile;

uint64_t secateur_clock(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void fail(const char *what) {
    fprintf(stderr, "%s\n", what);
    exit(1);
}

static void *aligned(size_t bytes) {
    void *memory = NULL;
    if (posix_memalign(&memory, 64, bytes == 0 ? 64 : bytes) != 0) fail("not enough memory");
    memset(memory, 0, bytes);
    return memory;
}

/* --- perf events: cycles and instructions of this thread, where the kernel lets us --- */

static int open_counter(uint64_t what, int leader) {
    struct perf_event_attr attributes;
    memset(&attributes, 0, sizeof attributes);
    attributes.type = PERF_TYPE_HARDWARE;
    attributes.size = sizeof attributes;
    attributes.config = what;
    attributes.disabled = leader < 0;
    attributes.exclude_kernel = 1;
    attributes.exclude_hv = 1;
    return (int)syscall(SYS_perf_event_open, &attributes, 0, -1, leader, 0);
}

static int read_counter(int counter, uint64_t *value) {
    return counter >= 0 && read(counter, value, sizeof *value) == (ssize_t)sizeof *value;
}

/* --- results --- */

static uint64_t checksum(const unsigned char *data, size_t bytes) {
    uint64_t hash = 14695981039346656037u; /* FNV-1a */
    for (size_t i = 0; i < bytes; i++) hash = (hash ^ data[i]) * 1099511628211u;
    return hash;
}

static double half(uint16_t bits, int is_bfloat) {
    if (is_bfloat) {
        uint32_t wide = (uint32_t)bits << 16;
        float value;
        memcpy(&value, &wide, sizeof value);
        return value;
    }
    int exponent = bits >> 10 & 31, fraction = bits & 1023;
    double value = exponent == 31 ? (fraction ? NAN : INFINITY)
                   : exponent     ? ldexp(1024 + fraction, exponent - 25)
                                  : ldexp(fraction, -24);
    return bits >> 15 ? -value : value;
}

static double element(secateur_type type, const void *data, size_t i) {
    switch (type) {
    case SECATEUR_FLOAT16: return half(((const uint16_t *)data)[i], 0);
    case SECATEUR_BFLOAT16: return half(((const uint16_t *)data)[i], 1);
    case SECATEUR_FLOAT32: return ((const float *)data)[i];
    case SECATEUR_FLOAT64: return ((const double *)data)[i];
    case SECATEUR_INT8: return ((const int8_t *)data)[i];
    case SECATEUR_INT16: return ((const int16_t *)data)[i];
    case SECATEUR_INT32: return ((const int32_t *)data)[i];
    case SECATEUR_INT64: return (double)((const int64_t *)data)[i];
    case SECATEUR_UINT16: return ((const uint16_t *)data)[i];
    case SECATEUR_UINT32: return ((const uint32_t *)data)[i];
    case SECATEUR_UINT64: return (double)((const uint64_t *)data)[i];
    default: return ((const uint8_t *)data)[i];
    }
}

static size_t item_bytes(secateur_type type) {
    switch (type) {
    case SECATEUR_FLOAT64: case SECATEUR_INT64: case SECATEUR_UINT64: return 8;
    case SECATEUR_FLOAT32: case SECATEUR_INT32: case SECATEUR_UINT32: return 4;
    case SECATEUR_INT8: case SECATEUR_UINT8: case SECATEUR_BOOL: return 1;
    default: return 2;
    }
}

/* Prints how an output compares with what is expected; whether it is near enough: the largest
 * difference over the largest magnitude. */
static int print_output(const secateur_tensor *t, const void *have, const void *want, size_t bytes) {
    size_t count = bytes / item_bytes(t->type), equal = 0;
    double largest = 0, difference = 0;
    for (size_t i = 0; i < count; i++) {
        double a = element(t->type, want, i), b = element(t->type, have, i);
        if (isfinite(a) && fabs(a) > largest) largest = fabs(a);
        if (a == b || (isnan(a) && isnan(b))) {
            equal++;
            continue;
        }
        double apart = fabs(a - b);
        difference = isfinite(apart) && isfinite(difference) ? fmax(difference, apart) : INFINITY;
    }
    double relative = difference == 0 ? 0 : difference / (largest > 0 ? largest : 1);
    int agrees = relative <= bench_tolerance;
    printf("{\"checksum\": \"%016" PRIx64 "\", \"expected\": \"%016" PRIx64 "\", ",
           checksum(have, bytes), checksum(want, bytes));
    if (isfinite(relative)) printf("\"relative_difference\": %.3g, ", relative);
    else printf("\"relative_difference\": null, ");
    printf("\"identical\": %.6g, \"agrees\": %s}",
           count == 0 ? 1.0 : (double)equal / (double)count, agrees ? "true" : "false");
    return agrees;
}

/* --- the run --- */

static int compare(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

static double percentile(const uint64_t *sorted, size_t count, double share) {
    size_t rank = (size_t)ceil(share * (double)count);
    return (double)sorted[rank == 0 ? 0 : rank - 1] / 1000.0;
}

static void run(const secateur_model *model, const secateur_call *call) {
    int status = model->run(call);
    if (status == 0) return;
    fprintf(stderr, "%s (number %d)\n", model->error_text(status), status >> 8);
    exit(1);
}

int main(int words, char **word) {
    const secateur_model *model = bench_model;
    double seconds = words > 1 ? atof(word[1]) : 2.0;
    long threads = words > 2 ? atol(word[2]) : 1;
    if (words > 3 || !(seconds > 0 && seconds <= 3600) || threads < 1 || threads > 256) {
        fprintf(stderr, "usage: %s [SECONDS [THREADS]]\n", word[0]);
        return 2;
    }
    secateur_call call = {0};
    secateur_input *inputs = aligned((model->input_count + 1) * sizeof *inputs);
    secateur_output *outputs = aligned((model->output_count + 1) * sizeof *outputs);
    const int64_t *sizes = bench_dimensions;
    for (size_t i = 0; i < model->input_count; i++) {
        const secateur_tensor *t = &model->inputs[i];
        size_t bytes = item_bytes(t->type);
        for (uint32_t k = 0; k < t->rank; k++) bytes *= (size_t)sizes[k];
        void *data = aligned(bytes);
        memcpy(data, bench_data + bench_inputs[i], bytes);
        inputs[i] = (secateur_input){data, bytes, sizes, t->rank};
        sizes += t->rank;
    }
    for (size_t i = 0; i < model->output_count; i++) {
        size_t bytes = bench_output_bytes[i];
        outputs[i] = (secateur_output){aligned(bytes), bytes, NULL, 0};
    }
    call.version = SECATEUR_INTERFACE;
    call.threads = (uint32_t)threads;
    call.inputs = inputs;
    call.outputs = outputs;
    call.input_count = model->input_count;
    call.output_count = model->output_count;
    if (model->weights_bytes > 0) {
        void *weights = aligned(model->weights_bytes);
        memcpy(weights, bench_data + bench_weights, model->weights_bytes);
        call.weights = weights;
        call.weights_bytes = model->weights_bytes;
    }
    call.workspace_bytes = model->workspace_bytes(&call);
    call.workspace = aligned(call.workspace_bytes);

    for (int i = 0; i < WARMUP; i++) run(model, &call);
    int cycles = open_counter(PERF_COUNT_HW_CPU_CYCLES, -1);
    int instructions = cycles < 0 ? -1 : open_counter(PERF_COUNT_HW_INSTRUCTIONS, cycles);
    uint64_t *times = aligned(MOST_RUNS * sizeof *times), total = 0;
    size_t count = 0;
    if (cycles >= 0) ioctl(cycles, PERF_EVENT_IOC_ENABLE, PERF_IOC_FLAG_GROUP);
    while (count < LEAST_RUNS || ((double)total < seconds * 1e9 && count < MOST_RUNS)) {
        uint64_t start = secateur_clock();
        run(model, &call);
        times[count] = secateur_clock() - start;
        total += times[count++];
    }
    if (cycles >= 0) ioctl(cycles, PERF_EVENT_IOC_DISABLE, PERF_IOC_FLAG_GROUP);

    /* The calls of kernels, by the median of some runs each. */
    size_t calls = bench_call_count, rounds = count < PROFILED ? count : PROFILED;
    uint64_t *profile = aligned((calls + 1) * rounds * sizeof *profile);
    for (size_t r = 0; r < rounds; r++) {
        secateur_profile = profile + r * calls;
        run(model, &call);
        secateur_profile = NULL;
    }

    struct utsname system = {0};
    uname(&system);
    qsort(times, count, sizeof *times, compare);
    printf("{\"schema\": 1, \"name\": \"%s\", \"digest\": \"%s\", \"target\": \"%s\",\n",
           model->name, model->digest, model->target);
    printf(" \"machine\": \"%s\", \"kernel\": \"%s\", \"threads\": %ld, \"samples\": %" PRId64 ",\n",
           system.machine, system.release, threads, bench_samples);
    printf(" \"workspace_bytes\": %zu, \"runs\": %zu,\n", call.workspace_bytes, count);
    printf(" \"latency_us\": {\"mean\": %.3f, \"min\": %.3f", (double)total / 1000.0 / (double)count,
           (double)times[0] / 1000.0);
    static const int shares[] = {50, 90, 95, 99};
    for (size_t i = 0; i < sizeof shares / sizeof *shares; i++) {
        printf(", \"p%d\": %.3f", shares[i], percentile(times, count, shares[i] / 100.0));
    }
    printf(", \"max\": %.3f},\n", (double)times[count - 1] / 1000.0);
    static const char *const names[] = {"cycles", "instructions"};
    const int counters[] = {cycles, instructions};
    for (int i = 0; i < 2; i++) {
        uint64_t value = 0;
        if (read_counter(counters[i], &value)) {
            printf(" \"%s\": %.1f,\n", names[i], (double)value / (double)count);
        } else {
            printf(" \"%s\": null,\n", names[i]);
        }
    }
    printf(" \"calls\": [");
    uint64_t *column = aligned((rounds + 1) * sizeof *column);
    for (size_t c = 0; c < calls; c++) {
        for (size_t r = 0; r < rounds; r++) column[r] = profile[r * calls + c];
        qsort(column, rounds, sizeof *column, compare);
        printf("%s\n  {\"microseconds\": %.3f, %s}", c == 0 ? "" : ",",
               percentile(column, rounds, 0.5), bench_calls[c]);
    }
    printf("],\n \"outputs\": [");
    int agree = 1;
    for (size_t i = 0; i < model->output_count; i++) {
        printf("%s\n  ", i == 0 ? "" : ",");
        agree &= print_output(
            &model->outputs[i], outputs[i].data, bench_data + bench_outputs[i], outputs[i].bytes);
    }
    printf("],\n \"agrees\": %s}\n", agree ? "true" : "false");
    return fflush(stdout) == 0 && agree ? 0 : 1;
}
