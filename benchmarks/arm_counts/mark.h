/* The instruction at which count.c begins and ends to count. */
#ifdef __aarch64__
#define MARK() __asm__ volatile(".inst 0xD5032ADF" ::: "memory")
#else
#define MARK() __asm__ volatile(".inst 0xE1A0C00C" ::: "memory")
#endif
