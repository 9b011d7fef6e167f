/* Division for CPUs that have no instruction for it: what compilers call instead, and else
 * find in libgcc, which an artifact must not need. Quotients round toward zero; of division by
 * zero nothing is said. */

#include <stdint.h>

#define HIDDEN __attribute__((visibility("hidden")))

static uint64_t divide(uint64_t number, uint64_t by, uint64_t *rest) {
    uint64_t quotient = 0, left = 0;
    int bits = number == 0 ? 0 : 64 - __builtin_clzll(number);
    for (int i = bits - 1; i >= 0; i--) {
        left = left << 1 | (number >> i & 1);
        if (left >= by) {
            left -= by;
            quotient |= (uint64_t)1 << i;
        }
    }
    *rest = left;
    return quotient;
}

static int64_t divide_signed(int64_t number, int64_t by, int64_t *rest) {
    uint64_t left;
    uint64_t quotient = divide(
        number < 0 ? -(uint64_t)number : (uint64_t)number,
        by < 0 ? -(uint64_t)by : (uint64_t)by,
        &left
    );
    *rest = (int64_t)(number < 0 ? -left : left);
    return (int64_t)((number < 0) != (by < 0) ? -quotient : quotient);
}

#define DIVISION(type, wide, divide, quotient, remainder)                       \
    HIDDEN type quotient(type number, type by) {                               \
        wide rest;                                                             \
        return (type)divide(number, by, &rest);                                \
    }                                                                          \
    HIDDEN type remainder(type number, type by) {                              \
        wide rest;                                                             \
        divide(number, by, &rest);                                             \
        return (type)rest;                                                     \
    }

DIVISION(uint32_t, uint64_t, divide, __udivsi3, __umodsi3)
DIVISION(uint64_t, uint64_t, divide, __udivdi3, __umoddi3)
DIVISION(int32_t, int64_t, divide_signed, __divsi3, __modsi3)
DIVISION(int64_t, int64_t, divide_signed, __divdi3, __moddi3)

/* Named by the tables of every function for unwinding, which nothing here does. */
HIDDEN void __aeabi_unwind_cpp_pr0(void) {}
HIDDEN void __aeabi_unwind_cpp_pr1(void) {}
