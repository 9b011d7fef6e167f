/* Division, and conversion of 64-bit integers, for CPUs that have no instruction for it: what
 * compilers call instead, and else find in libgcc, which a shared object must not need. Quotients
 * round toward zero; of division by zero nothing is said. */

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

/* What C compilers for ARM call, by other names than LLVM for kernels. */
HIDDEN uint32_t __aeabi_uidiv(uint32_t number, uint32_t by) { return __udivsi3(number, by); }

HIDDEN int32_t __aeabi_idiv(int32_t number, int32_t by) { return __divsi3(number, by); }

/* Quotient and remainder in two registers. */
HIDDEN uint64_t __aeabi_uidivmod(uint32_t number, uint32_t by) {
    uint64_t rest, quotient = divide(number, by, &rest);
    return rest << 32 | (uint32_t)quotient;
}

HIDDEN uint64_t __aeabi_idivmod(int32_t number, int32_t by) {
    int64_t rest, quotient = divide_signed(number, by, &rest);
    return (uint64_t)(uint32_t)rest << 32 | (uint32_t)quotient;
}

/* Quotient and remainder in two pairs of registers, which no function in C returns. */
#ifdef __arm__
HIDDEN uint64_t secateur_divide(uint64_t number, uint64_t by, uint64_t *rest) {
    return divide(number, by, rest);
}

HIDDEN int64_t secateur_divide_signed(int64_t number, int64_t by, int64_t *rest) {
    return divide_signed(number, by, rest);
}

#define DIVISION_IN_PAIRS(name, divide)                                        \
    __asm__(                                                                   \
        ".hidden " #name "\n"                                                  \
        ".globl " #name "\n"                                                   \
        ".type " #name ", %function\n"                                         \
        #name ":\n"                                                            \
        "push {r6, lr}\n"                                                      \
        "sub sp, sp, #16\n"                                                    \
        "add r6, sp, #8\n"                                                     \
        "str r6, [sp]\n" /* the fifth argument's place: where the rest goes */ \
        "bl " #divide "\n"                                                     \
        "ldr r2, [sp, #8]\n"                                                   \
        "ldr r3, [sp, #12]\n"                                                  \
        "add sp, sp, #16\n"                                                    \
        "pop {r6, pc}\n");

DIVISION_IN_PAIRS(__aeabi_uldivmod, secateur_divide)
DIVISION_IN_PAIRS(__aeabi_ldivmod, secateur_divide_signed)
#endif

/* The bits of a float of `digits` binary digits whose exponent is biased by `bias`, of an
 * integer: the nearest one, of two the even one. */
static uint64_t float_bits(uint64_t number, int digits, int bias) {
    if (number == 0) return 0;
    int length = 64 - __builtin_clzll(number), excess = length - digits;
    uint64_t exponent = (uint64_t)(length - 1 + bias) << (digits - 1);
    uint64_t rest, mantissa;
    if (excess <= 0) {
        mantissa = number << -excess;
    } else {
        uint64_t half = (uint64_t)1 << (excess - 1);
        rest = number & (half << 1) - 1;
        mantissa = number >> excess;
        mantissa += rest > half || (rest == half && (mantissa & 1));
    }
    /* The leading digit is not stored; one that rounding carries into raises the exponent. */
    return exponent + mantissa - ((uint64_t)1 << (digits - 1));
}

/* A float's integer part, given its bits; what has more than `length` digits is the lowest
 * signed number. */
static uint64_t integer_part(uint64_t bits, int digits, int width, int length) {
    int bias = (1 << (width - 1)) - 1;
    int exponent = (int)(bits >> (digits - 1) & ((1 << width) - 1)) - bias;
    uint64_t leading = (uint64_t)1 << (digits - 1);
    uint64_t mantissa = (bits & (leading - 1)) | leading;
    if (exponent < 0) return 0;
    if (exponent >= length) return (uint64_t)1 << 63;
    int shift = exponent - (digits - 1);
    return shift < 0 ? mantissa >> -shift : mantissa << shift;
}

typedef union {
    float value;
    uint32_t bits;
} Float;

typedef union {
    double value;
    uint64_t bits;
} Double;

static uint64_t magnitude(int64_t number) {
    return number < 0 ? -(uint64_t)number : (uint64_t)number;
}

HIDDEN float __floatundisf(uint64_t number) {
    Float f = {.bits = (uint32_t)float_bits(number, 24, 127)};
    return f.value;
}

HIDDEN float __floatdisf(int64_t number) {
    Float f = {.bits = (uint32_t)float_bits(magnitude(number), 24, 127)};
    f.bits |= (uint32_t)(number < 0) << 31;
    return f.value;
}

HIDDEN double __floatundidf(uint64_t number) {
    Double d = {.bits = float_bits(number, 53, 1023)};
    return d.value;
}

HIDDEN double __floatdidf(int64_t number) {
    Double d = {.bits = float_bits(magnitude(number), 53, 1023)};
    d.bits |= (uint64_t)(number < 0) << 63;
    return d.value;
}

HIDDEN uint64_t __fixunssfdi(float value) {
    Float f = {value};
    return integer_part(f.bits & 0x7FFFFFFF, 24, 8, 64);
}

HIDDEN int64_t __fixsfdi(float value) {
    Float f = {value};
    uint64_t whole = integer_part(f.bits & 0x7FFFFFFF, 24, 8, 63);
    return (int64_t)(f.bits >> 31 ? -whole : whole);
}

HIDDEN uint64_t __fixunsdfdi(double value) {
    Double d = {value};
    return integer_part(d.bits & 0x7FFFFFFFFFFFFFFF, 53, 11, 64);
}

HIDDEN int64_t __fixdfdi(double value) {
    Double d = {value};
    uint64_t whole = integer_part(d.bits & 0x7FFFFFFFFFFFFFFF, 53, 11, 63);
    return (int64_t)(d.bits >> 63 ? -whole : whole);
}

/* Named by the tables of every function for unwinding, which nothing here does. */
HIDDEN void __aeabi_unwind_cpp_pr0(void) {}
HIDDEN void __aeabi_unwind_cpp_pr1(void) {}
