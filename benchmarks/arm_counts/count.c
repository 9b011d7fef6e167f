/* A plugin of qemu that counts what a program runs between two markers.
 *
 * The second marker's counts less the first one's are written to stderr, a line for all and one
 * for each function of the program itself:
 *
 *     total INSTRUCTIONS ACCESSES
 *     NAME INSTRUCTIONS ACCESSES
 *
 * A marker is an instruction that does nothing and that no compiler emits: `hint #86` on
 * AArch64, `mov r12, r12` on 32-bit ARM. Accesses are those of the guest's memory; qemu makes
 * two of a load or store of 16 bytes. Programs must have one thread while they are counted. */

#include <inttypes.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Version 1 of the interface, whose header distributions don't have. */
typedef uint64_t plugin_id;
struct qemu_plugin_tb;
struct qemu_plugin_insn;
extern void qemu_plugin_register_vcpu_tb_trans_cb(
    plugin_id, void (*)(plugin_id, struct qemu_plugin_tb *)
);
extern size_t qemu_plugin_tb_n_insns(const struct qemu_plugin_tb *);
extern struct qemu_plugin_insn *qemu_plugin_tb_get_insn(const struct qemu_plugin_tb *, size_t);
extern const void *qemu_plugin_insn_data(const struct qemu_plugin_insn *);
extern size_t qemu_plugin_insn_size(const struct qemu_plugin_insn *);
extern const char *qemu_plugin_insn_symbol(const struct qemu_plugin_insn *);
extern void qemu_plugin_register_vcpu_insn_exec_cb(
    struct qemu_plugin_insn *, void (*)(unsigned, void *), int flags, void *
);
extern void qemu_plugin_register_vcpu_tb_exec_inline(
    struct qemu_plugin_tb *, int operation, void *, uint64_t
);
extern void qemu_plugin_register_vcpu_mem_inline(
    struct qemu_plugin_insn *, int accesses, int operation, void *, uint64_t
);

__attribute__((visibility("default"))) int qemu_plugin_version = 1;

enum { ADD = 0, READS_AND_WRITES = 3, NO_REGISTERS = 0 };

typedef struct Function {
    char name[128];
    uint64_t instructions, accesses, first_instructions, first_accesses;
    struct Function *next;
} Function;

static Function *functions;
static int markers;

static Function *function_called(const char *name) {
    if (name == NULL || *name == 0) name = "?";
    for (Function *f = functions; f != NULL; f = f->next) {
        if (strncmp(f->name, name, sizeof f->name - 1) == 0) return f;
    }
    Function *f = calloc(1, sizeof *f);
    if (f == NULL) abort();
    strncpy(f->name, name, sizeof f->name - 1);
    f->next = functions;
    return functions = f;
}

static void on_marker(unsigned cpu, void *unused) {
    (void)cpu;
    (void)unused;
    if (++markers == 1) {
        for (Function *f = functions; f != NULL; f = f->next) {
            f->first_instructions = f->instructions;
            f->first_accesses = f->accesses;
        }
    } else if (markers == 2) {
        uint64_t instructions = 0, accesses = 0;
        for (Function *f = functions; f != NULL; f = f->next) {
            instructions += f->instructions - f->first_instructions;
            accesses += f->accesses - f->first_accesses;
        }
        fprintf(stderr, "total %" PRIu64 " %" PRIu64 "\n", instructions, accesses);
        for (Function *f = functions; f != NULL; f = f->next) {
            uint64_t own = f->instructions - f->first_instructions;
            if (own == 0) continue;
            fprintf(stderr, "%s %" PRIu64 " %" PRIu64 "\n", f->name, own,
                    f->accesses - f->first_accesses);
        }
    }
}

static void on_translation(plugin_id id, struct qemu_plugin_tb *block) {
    (void)id;
    size_t count = qemu_plugin_tb_n_insns(block);
    const char *name = qemu_plugin_insn_symbol(qemu_plugin_tb_get_insn(block, 0));
    Function *function = function_called(name);
    qemu_plugin_register_vcpu_tb_exec_inline(block, ADD, &function->instructions, count);
    for (size_t i = 0; i < count; i++) {
        struct qemu_plugin_insn *instruction = qemu_plugin_tb_get_insn(block, i);
        uint32_t code = 0;
        if (qemu_plugin_insn_size(instruction) == 4) {
            memcpy(&code, qemu_plugin_insn_data(instruction), 4);
        }
        if (code == 0xD5032ADF || code == 0xE1A0C00C) {
            qemu_plugin_register_vcpu_insn_exec_cb(instruction, on_marker, NO_REGISTERS, NULL);
        }
        qemu_plugin_register_vcpu_mem_inline(
            instruction, READS_AND_WRITES, ADD, &function->accesses, 1
        );
    }
}

__attribute__((visibility("default"))) int qemu_plugin_install(
    plugin_id id, const void *info, int count, char **words
) {
    (void)info;
    (void)count;
    (void)words;
    qemu_plugin_register_vcpu_tb_trans_cb(id, on_translation);
    return 0;
}
