/* Runs vpdpbusd of AVX-VNNI, on registers of 256 bits, where a CPU doesn't have it: each time that
 * the CPU refuses the instruction, in the handler of that signal. To be loaded before all else. */

#define _GNU_SOURCE
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

enum { XMM = 160, XSTATE_BV = 512, YMM_HIGH = 576 };

static const int order[16] = {
    REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
    REG_R8, REG_R9, REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15,
};

static void read_register(const unsigned char *state, int number, unsigned char *value) {
    memcpy(value, state + XMM + 16 * number, 16);
    memcpy(value + 16, state + YMM_HIGH + 16 * number, 16);
}

static void emulate(int sign, siginfo_t *info, void *context) {
    (void)sign, (void)info;
    greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
    unsigned char *state = (unsigned char *)((ucontext_t *)context)->uc_mcontext.fpregs;
    const unsigned char *code = (const unsigned char *)g[REG_RIP], *at = code;
    /* C4, then the inverted bits of three registers and the map 0F38, then the second operand's
     * inverted number, 256 bits, the prefix 66. */
    int known = at[0] == 0xC4 && (at[1] & 31) == 2 && (at[2] & 0x87) == 5 && at[3] == 0x50;
    if (!known) {
        static const char text[] = "another instruction that this CPU lacks\n";
        if (write(2, text, sizeof text - 1) < 0) _exit(4);
        _exit(3);
    }
    int r = !(at[1] & 0x80) * 8, x = !(at[1] & 0x40) * 8, b = !(at[1] & 0x20) * 8;
    int second = ~(at[2] >> 3) & 15, modrm = at[4];
    int destination = (modrm >> 3 & 7) | r, mod = modrm >> 6, rm = modrm & 7;
    unsigned char sum[32], bytes[32], weights[32];
    at += 5;
    if (mod == 3) {
        read_register(state, rm | b, weights);
    } else {
        uint64_t address = 0;
        int is_relative = 0;
        if (rm == 4) {
            int sib = *at++, index = (sib >> 3 & 7) | x, base = sib & 7;
            if (index != 4) address += (uint64_t)g[order[index]] << (sib >> 6);
            if (base == 5 && mod == 0) {
                int32_t offset;
                memcpy(&offset, at, 4);
                at += 4;
                address += (uint64_t)(int64_t)offset;
            } else {
                address += (uint64_t)g[order[base | b]];
            }
        } else if (rm == 5 && mod == 0) {
            is_relative = 1;
        } else {
            address += (uint64_t)g[order[rm | b]];
        }
        if (mod == 1) address += (uint64_t)(int64_t)(int8_t)*at++;
        if (mod == 2 || is_relative) {
            int32_t offset;
            memcpy(&offset, at, 4);
            at += 4;
            address += (uint64_t)(int64_t)offset;
        }
        if (is_relative) address += (uint64_t)at;
        memcpy(weights, (const void *)address, 32);
    }
    read_register(state, destination, sum);
    read_register(state, second, bytes);
    for (int lane = 0; lane < 8; lane++) {
        uint32_t total;
        memcpy(&total, sum + 4 * lane, 4);
        for (int i = 4 * lane; i < 4 * lane + 4; i++) {
            total += (uint32_t)(bytes[i] * (int8_t)weights[i]);
        }
        memcpy(sum + 4 * lane, &total, 4);
    }
    memcpy(state + XMM + 16 * destination, sum, 16);
    memcpy(state + YMM_HIGH + 16 * destination, sum + 16, 16);
    state[XSTATE_BV] |= 7;
    g[REG_RIP] = (greg_t)at;
}

__attribute__((constructor)) static void begin(void) {
    struct sigaction action = {.sa_sigaction = emulate, .sa_flags = SA_SIGINFO};
    if (sigaction(SIGILL, &action, NULL) != 0) abort();
}
