/* Decodes packed weights into memory of the caller's. The format is that of `packing.py`: a head,
 * then records, each of which is one byte of every element of an array. */

#include <stddef.h>
#include <stdint.h>

#include "context.h"

enum { MOST_BITS = 11, CODES = 1 << MOST_BITS, HEAD = 32, RECORD = 24, LENGTHS = 128 };
enum { STORED, CODED, EQUAL };

static uint64_t number(const unsigned char *bytes, int count) {
    uint64_t value = 0;
    for (int i = count - 1; i >= 0; i--) value = value << 8 | bytes[i];
    return value;
}

/* Symbols of a canonical prefix code, whose lengths come first, 4 bits each. */
static int decode(
    const unsigned char *code, size_t bytes, unsigned char *to, size_t count, size_t stride
) {
    uint16_t table[CODES];
    size_t filled = 0;
    if (bytes < LENGTHS) return 0;
    for (int length = 1; length <= MOST_BITS; length++) {
        for (int symbol = 0; symbol < 256; symbol++) {
            if ((code[symbol >> 1] >> (symbol & 1) * 4 & 15) != length) continue;
            size_t step = (size_t)1 << (MOST_BITS - length);
            if (filled + step > CODES) return 0;
            while (step-- > 0) table[filled++] = (uint16_t)(symbol << 4 | length);
        }
    }
    if (filled != CODES) return 0;
    const unsigned char *next = code + LENGTHS, *end = code + bytes;
    uint32_t bits = 0;
    int held = 0;
    for (size_t i = 0; i < count; i++, to += stride) {
        for (; held < MOST_BITS; held += 8) bits = bits << 8 | (next < end ? *next++ : 0);
        unsigned entry = table[bits >> (held - MOST_BITS) & (CODES - 1)];
        held -= (int)(entry & 15);
        *to = (unsigned char)(entry >> 4);
    }
    return 1;
}

/* As zlib's adler32. */
static uint32_t checksum(const unsigned char *bytes, size_t count) {
    uint32_t a = 1, b = 0;
    while (count > 0) {
        size_t step = count < 5000 ? count : 5000;
        count -= step;
        for (; step > 0; step--) {
            a += *bytes++;
            b += a;
        }
        a %= 65521;
        b %= 65521;
    }
    return b << 16 | a;
}

int secateur_unpack_1(
    const unsigned char *packed, size_t bytes, unsigned char *weights, size_t room
) {
    static const char magic[] = "secateur packed1";
    if (bytes < HEAD) return 0;
    for (int i = 0; i < 16; i++) {
        if (packed[i] != (unsigned char)magic[i]) return 0;
    }
    uint64_t size = number(packed + 16, 8), records = number(packed + 28, 4);
    if (size > room) return 0;
    for (size_t i = 0; i < size; i++) weights[i] = 0;
    const unsigned char *at = packed + HEAD;
    size_t left = bytes - HEAD;
    for (; records > 0; records--) {
        if (left < RECORD) return 0;
        uint64_t begin = number(at, 8), count = number(at + 8, 4), length = number(at + 12, 4);
        unsigned stride = at[16], kind = at[17];
        at += RECORD;
        left -= RECORD;
        if (length > left || stride < 1 || begin >= size || count < 1 ||
            (count - 1) * stride >= size - begin) {
            return 0;
        }
        unsigned char *to = weights + begin;
        if (kind == CODED) {
            if (!decode(at, (size_t)length, to, (size_t)count, stride)) return 0;
        } else {
            if (kind > EQUAL || length != (kind == EQUAL ? 1 : count)) return 0;
            for (size_t i = 0; i < count; i++) to[i * stride] = at[kind == EQUAL ? 0 : i];
        }
        at += length;
        left -= (size_t)length;
    }
    return left == 0 && checksum(weights, (size_t)size) == number(packed + 24, 4);
}
