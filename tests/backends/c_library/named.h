/* A library's functions, whatever its name is: of -DMODEL=NAME. */

#define JOIN(a, b) a##b
#define NAMED(name, end) JOIN(name, end)
#define RUN NAMED(MODEL, _run)
#define SHAPES NAMED(MODEL, _shapes)
#define WORKSPACE_BYTES NAMED(MODEL, _workspace_bytes)
#define ERROR_TEXT NAMED(MODEL, _error_text)
#define THE_MODEL NAMED(MODEL, _model)
