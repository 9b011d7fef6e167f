/* Part of the entry of bench programs: how long each call of a kernel takes. */

extern uint64_t *secateur_profile; /* NULL: nothing is timed; else nanoseconds by call */
uint64_t secateur_clock(void);

#undef CALL
#define CALL(i, call)                                                   \
    {                                                                   \
        uint64_t start = secateur_profile != NULL ? secateur_clock() : 0; \
        if (call != 0) return fault | i << SECATEUR_CALL_SHIFT;         \
        if (secateur_profile != NULL) secateur_profile[i] += secateur_clock() - start; \
    }
