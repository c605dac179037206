#include "beside.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// The first byte that differs of the blocks a step leaves, where records_compare has seen that one does.
static void find_byte(const case_run *both, char *message, size_t size)
{
    const int bytes = case_block_bytes(both->given);
    unsigned char *blocks = malloc(2 * (size_t)bytes);
    for (int at = 0; blocks && at < CASE_SLOTS * CASE_LAYERS * CASE_HEADS; at++) {
        const int head = at % CASE_HEADS, layer = at / CASE_HEADS % CASE_LAYERS, sequence = at / CASE_HEADS / CASE_LAYERS;
        for (int page = 0;; page++) {
            if (case_block(&both[0], sequence, layer, head, page, blocks) || case_block(&both[1], sequence, layer, head, page, blocks + bytes))
                break; // no such page
            for (int i = 0; i < case_format(both->given, layer)->block_bytes; i++)
                if (blocks[i] != blocks[bytes + i]) {
                    snprintf(message, size, "; byte %d of sequence %d, layer %d, head %d, page %d is 0x%02x, on the CPU 0x%02x", i, sequence,
                             layer, head, page, blocks[i], blocks[bytes + i]);
                    free(blocks);
                    return;
                }
        }
    }
    free(blocks);
}

static int run_steps(case_run *both, record *all, emulation *e)
{
    const int bf16 = both->given->package.formats[0].dtype == KT_BF16;
    const difference limits = {error_limit(bf16), 4 * error_limit(bf16), INFINITY};
    for (int step = 0; step < CASE_STEPS; step++) {
        record records[2] = {0};
        // Each path in turn, with a block to each unit of append and with fewer.
        kt__emulate_card(both[0].engine->backend, step % 2, step / 2 % 2 ? 3 : 1 << 20);
        int code = case_step(&both[0], step, &records[0]);
        if (!code)
            code = case_step(&both[1], step, &records[1]);
        if (!code)
            records_compare(both->given, &records[0], &records[1], &limits, &e->found);
        if (!code && *e->found.fault) {
            char where[256] = "";
            find_byte(both, where, sizeof where);
            code = fail(KG_FAILED, "%s%s", e->found.fault, where);
        }
        kg_text_bytes(&all->blocks, records[0].blocks.data, records[0].blocks.size);
        kg_text_bytes(&all->outputs, records[0].outputs.data, records[0].outputs.size);
        record_free(&records[0]);
        record_free(&records[1]);
        if (code) {
            char message[KG_ERROR];
            snprintf(message, sizeof message, "%s", failure);
            return fail(code, "step %d, %s: %.3000s", step, both[0].engine->backend->device_name, message);
        }
    }
    return KG_OK;
}

static int change_sources(kt_engine *engine, const change *change)
{
    int found = 0;
    for (int k = 0; k < engine->package.kernel_count; k++) {
        kt__kernel *kernel = &engine->package.kernels[k];
        const char *at = kernel->op == change->op ? strstr(kernel->source, change->from) : NULL;
        if (!at)
            continue;
        const size_t before = (size_t)(at - kernel->source), size = strlen(kernel->source) + strlen(change->to) + 1;
        char *source = malloc(size);
        if (!source)
            return fail(KG_MACHINE, "out of memory");
        snprintf(source, size, "%.*s%s%s", (int)before, kernel->source, change->to, at + strlen(change->from));
        free(kernel->source);
        kernel->source = source;
        found++;
    }
    return found ? KG_OK : fail(KG_USER, "no %s kernel of %s has the text \"%s\"", kt__op_names[change->op], engine->package.spec,
                                change->from);
}

int run_beside_cpu(const test_case *given, uint64_t seed, const change *change, record *record, emulation *e)
{
    kt_engine *engines[2] = {NULL, NULL};
    case_run both[2] = {{0}, {0}};
    int code = KG_OK;
    for (int i = 0; i < 2 && !code; i++) {
        const kt_open_args args = {.size = sizeof args, .package = given->folder, .device = i ? KT_DEVICE_CPU : KT_DEVICE_CUDA};
        const kt_status status = kt_open(&args, &engines[i]);
        code = status ? refused("kt_open", status) : case_open(&both[i], given, engines[i], seed);
    }
    if (!code && change)
        code = change_sources(engines[0], change);
    if (!code)
        code = run_steps(both, record, e);
    for (int k = 0; k < given->package.kernel_count && engines[0]; k++)
        for (int path = 0; path < PATHS; path++)
            e->launches[k][path] = kt__emulate_launches(engines[0]->backend, k, path);
    for (int i = 0; i < 2; i++) {
        case_close(&both[i]);
        kt_close(engines[i]);
    }
    return code;
}
