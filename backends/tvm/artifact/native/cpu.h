/* Whether this CPU has the instructions that kernels use. Part of the entry of libraries, which
 * defines what it needs: bits of CPUID's registers on x86, of what the kernel tells elsewhere. */

#if defined(__x86_64__)

static void cpuid(uint32_t leaf, uint32_t subleaf, uint32_t *registers) {
    __asm__ volatile("cpuid"
                     : "=a"(registers[0]), "=b"(registers[1]), "=c"(registers[2]),
                       "=d"(registers[3])
                     : "a"(leaf), "c"(subleaf));
}

/* Whether the operating system keeps the registers of `mask`: bits of XCR0. */
static int keeps(uint32_t mask) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (low & mask) == mask;
}

static int has_instructions(void) {
    uint32_t first[4], seventh[4] = {0, 0, 0, 0}, next[4] = {0, 0, 0, 0}, extended[4];
    cpuid(0, 0, first);
    uint32_t leaves = first[0];
    cpuid(1, 0, first);
    if (leaves >= 7) cpuid(7, 0, seventh);
    if (seventh[0] >= 1) cpuid(7, 1, next);
    cpuid(0x80000001u, 0, extended);
    if ((first[2] & CPU_1_ECX) != CPU_1_ECX || (extended[2] & CPU_81_ECX) != CPU_81_ECX) return 0;
    if ((seventh[1] & CPU_7_EBX) != CPU_7_EBX || (seventh[2] & CPU_7_ECX) != CPU_7_ECX) return 0;
    if ((seventh[3] & CPU_7_EDX) != CPU_7_EDX || (next[0] & CPU_71_EAX) != CPU_71_EAX) return 0;
    return CPU_XCR0 == 0 || ((first[2] & 1u << 27) != 0 && keeps(CPU_XCR0));
}

#elif CPU_HWCAP != 0 || CPU_HWCAP2 != 0

unsigned long getauxval(unsigned long kind);

static int has_instructions(void) {
    return (getauxval(16) & CPU_HWCAP) == CPU_HWCAP && (getauxval(26) & CPU_HWCAP2) == CPU_HWCAP2;
}

#else

static int has_instructions(void) { return 1; }

#endif
