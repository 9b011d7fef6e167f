/* Which of several levels of instructions this CPU has. Part of entries, which list the levels. */

#if defined(__x86_64__)

/* Bits of CPUID's registers, by leaf, and of what the operating system keeps, XCR0. */
typedef struct {
    unsigned ecx_1, ebx_7, ecx_7, edx_7, eax_71, ecx_81, xcr0;
} secateur_features;

/* Tests bring a CPU along. */
#ifndef SECATEUR_OTHER_CPU

static void secateur_cpuid(unsigned leaf, unsigned subleaf, unsigned *registers) {
    __asm__ volatile("cpuid"
                     : "=a"(registers[0]), "=b"(registers[1]), "=c"(registers[2]),
                       "=d"(registers[3])
                     : "a"(leaf), "c"(subleaf));
}

static unsigned secateur_xcr0(void) {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

#endif

static secateur_features secateur_cpu(void) {
    unsigned first[4], seventh[4] = {0, 0, 0, 0}, next[4] = {0, 0, 0, 0}, extended[4];
    secateur_cpuid(0, 0, first);
    unsigned leaves = first[0];
    secateur_cpuid(1, 0, first);
    if (leaves >= 7) secateur_cpuid(7, 0, seventh);
    if (seventh[0] >= 1) secateur_cpuid(7, 1, next);
    secateur_cpuid(0x80000001u, 0, extended);
    secateur_features cpu = {first[2], seventh[1], seventh[2], seventh[3], next[0], extended[2], 0};
    if ((first[2] & 1u << 27) != 0) cpu.xcr0 = secateur_xcr0();
    return cpu;
}

static int secateur_has(const secateur_features *cpu, const secateur_features *level) {
    return (cpu->ecx_1 & level->ecx_1) == level->ecx_1 &&
           (cpu->ebx_7 & level->ebx_7) == level->ebx_7 &&
           (cpu->ecx_7 & level->ecx_7) == level->ecx_7 &&
           (cpu->edx_7 & level->edx_7) == level->edx_7 &&
           (cpu->eax_71 & level->eax_71) == level->eax_71 &&
           (cpu->ecx_81 & level->ecx_81) == level->ecx_81 &&
           (cpu->xcr0 & level->xcr0) == level->xcr0;
}

#else

/* Bits that the kernel tells, AT_HWCAP and AT_HWCAP2. */
typedef struct {
    unsigned long hwcap, hwcap2;
} secateur_features;

#ifdef SECATEUR_HWCAP

unsigned long getauxval(unsigned long kind);

static secateur_features secateur_cpu(void) {
    secateur_features cpu = {getauxval(16), getauxval(26)};
    return cpu;
}

#else /* no level asks for anything */

static secateur_features secateur_cpu(void) {
    secateur_features cpu = {0, 0};
    return cpu;
}

#endif

static int secateur_has(const secateur_features *cpu, const secateur_features *level) {
    return (cpu->hwcap & level->hwcap) == level->hwcap &&
           (cpu->hwcap2 & level->hwcap2) == level->hwcap2;
}

#endif

/* The first level all of whose instructions there are; -1: there is none. */
static int secateur_choose(const secateur_features *levels, int count) {
    const secateur_features cpu = secateur_cpu();
    for (int level = 0; level < count; level++) {
        if (secateur_has(&cpu, &levels[level])) return level;
    }
    return -1;
}
