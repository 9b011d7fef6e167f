/* Parallel loops run on the caller's threads, if it gives any: part of libraries that have no
 * threads of their own. */

#include "pool.h"

int secateur_share(const secateur_context *context, secateur_body body, void *data) {
    if (context->pool != 0) return share_in_pool(context, body, data);
    return body(data, context->scratch, 0, 1);
}
