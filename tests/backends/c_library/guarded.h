/* Memory between guards of other bytes, which a library must leave as they are. */

#include <stdlib.h>
#include <string.h>

enum { GUARD = 64, MOST_BLOCKS = 160 };

static unsigned char *blocks[MOST_BLOCKS];
static size_t sizes[MOST_BLOCKS];
static int count;

static unsigned char *guarded(size_t bytes) {
    size_t padded = (bytes + 63) / 64 * 64;
    unsigned char *memory = aligned_alloc(64, padded + 2 * GUARD);
    if (memory == NULL || count == MOST_BLOCKS) exit(9);
    memset(memory, 0xA5, padded + 2 * GUARD);
    blocks[count] = memory;
    sizes[count++] = bytes;
    return memory + GUARD;
}

static int are_whole(void) {
    for (int i = 0; i < count; i++) {
        size_t padded = (sizes[i] + 63) / 64 * 64 + 2 * GUARD;
        for (size_t k = 0; k < padded; k++) {
            int inside = k >= GUARD && k < GUARD + sizes[i];
            if (!inside && blocks[i][k] != 0xA5) return 0;
        }
    }
    return 1;
}
