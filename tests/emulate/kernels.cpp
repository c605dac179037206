// Runs the kernels of packages under the emulator through the public API, beside the CPU backend: pages must be equal byte for
// byte, attention within a relative L2 distance, and nothing may be reported. Every attend kernel of a package has its turn.
//
//   kernels PACKAGE... [--seed N]
//
// Sequences of uneven lengths in one batch: a prefill in uneven pieces across page boundaries, single tokens, an idle slot,
// strided inputs, outliers and elements that are not finite; long enough that each warp refills its stages, on a card of one
// multiprocessor, and shared among many blocks, on a large one.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <string>
#include <vector>

#include "backend.h"

extern "C" {
#include "core.h"
}

namespace {

enum { SLOTS = 3, LAYERS = 2, KV_HEADS = 2, MAX_TOKENS = 2048, MAX_ROWS = 1536 };

struct side {
    const char *name;
    kt_engine *engine;
    kt_cache *cache;
    kt_batch *batch;
    kt_sequence sequences[SLOTS];
    std::vector<uint16_t> out;
    std::vector<float> lse;
};

struct tensors { // of one layer and step; rows are `stride` apart, with a gap that nothing may read
    std::vector<uint16_t> query, key, value;
    int64_t query_row, kv_row;
};

bool failed(const char *what, kt_status status)
{
    if (status)
        printf("  %s: %s: %s\n", what, kt_status_name(status), kt_message());
    return status;
}

uint64_t state;

double uniform()
{
    state = state * 6364136223846793005ull + 1442695040888963407ull;
    return (double)(state >> 11) / 9007199254740992.0;
}

float normal() { return (float)(sqrt(-2 * log(uniform() + 1e-12)) * cos(6.283185307179586 * uniform())); }

void fill(std::vector<uint16_t> &to, int dtype, int64_t rows, int heads, int dim, int64_t stride, bool keys, bool damage)
{
    to.assign((size_t)(rows * stride), 0x7e01); // the gaps: NaN in both types
    for (int64_t row = 0; row < rows; row++)
        for (int i = 0; i < heads * dim; i++) {
            float x = normal() * (keys && i % dim % 17 == 3 ? 8.0f : keys && i % dim % 23 == 5 ? 1e-5f : 1.0f);
            if (damage && uniform() < 1e-4)
                x = uniform() < 0.5 ? INFINITY : NAN;
            to[(size_t)(row * stride + i)] = kt__from_float(dtype, x);
        }
}

// `attend`: the kernel to take whatever the package's table says.
bool open_side(side *s, const char *package, kt_device device, int attend, kt_engine_info *info)
{
    kt_open_args open = {};
    open.size = sizeof open, open.package = package, open.device = device;
    if (failed("kt_open", kt_open(&open, &s->engine)))
        return false;
    for (int i = 0; i < s->engine->package.choice_count; i++)
        if (s->engine->package.choices[i].op == KT__ATTEND)
            s->engine->package.choices[i].kernel = attend;
    info->size = sizeof *info;
    if (failed("kt_engine_query", kt_engine_query(s->engine, info)))
        return false;
    kt_cache_args cache = {};
    cache.size = sizeof cache, cache.layers = LAYERS, cache.kv_heads = KV_HEADS, cache.max_sequences = SLOTS, cache.spare_slabs = SLOTS;
    cache.budget_bytes = (uint64_t)LAYERS * KV_HEADS * (48 * info->block_bytes + 2 * SLOTS * info->slab_bytes) + 65536;
    if (failed("kt_cache_open", kt_cache_open(s->engine, &cache, &s->cache)))
        return false;
    kt_batch_args batch = {};
    batch.size = sizeof batch, batch.slots = SLOTS, batch.max_tokens = MAX_TOKENS, batch.max_rows = MAX_ROWS;
    if (failed("kt_batch_open", kt_batch_open(s->cache, &batch, &s->batch)))
        return false;
    for (int i = 0; i < SLOTS; i++)
        if (failed("kt_sequence_open", kt_sequence_open(s->cache, &s->sequences[i])))
            return false;
    return true;
}

void close_side(side *s)
{
    kt_batch_close(s->batch);
    kt_cache_close(s->cache);
    kt_close(s->engine);
}

bool attend(side *s, int layer, const tensors &t, int64_t rows, int q_heads, int dim, unsigned flags)
{
    kt_attend_args a = {};
    a.size = sizeof a, a.layer = layer, a.query = t.query.data(), a.query_row = t.query_row, a.flags = flags;
    s->out.assign((size_t)(rows * q_heads * dim), 0xffff);
    s->lse.assign((size_t)(rows * q_heads), NAN);
    a.out = s->out.data(), a.lse = s->lse.data();
    return !failed(s->name, kt_attend(s->batch, &a));
}

// Relative L2 distance of two outputs; rows of idle slots do not exist.
bool compare_outputs(const side &a, const side &b, int dtype, const char *what, double limit)
{
    double difference = 0, size = 0, lse = 0;
    for (size_t i = 0; i < a.out.size(); i++) {
        const double x = kt__to_float(dtype, a.out[i]), y = kt__to_float(dtype, b.out[i]);
        difference += (x - y) * (x - y), size += y * y;
    }
    for (size_t i = 0; i < a.lse.size(); i++)
        lse = fmax(lse, isfinite(a.lse[i]) ? fabs(a.lse[i] - b.lse[i]) : INFINITY);
    const double distance = sqrt(difference / size);
    if (distance <= limit && lse <= 4 * limit)
        return true;
    printf("  %s: relative L2 distance %.3g, log-sum-exp off by %.3g; at most %g and %g are allowed\n", what, distance, lse, limit, 4 * limit);
    return false;
}

// What a step brings, and what is then compared.
struct step {
    int fresh[SLOTS];
    enum { PREFILL, ATTEND, REFERENCE } what; // PREFILL: nothing attends, only pages and exact tokens are of interest
    int multiprocessors;
};

bool run_step(side *both, const step &given, int dtype, int group_heads, int dim, bool padded)
{
    const int *fresh = given.fresh;
    int64_t rows = 0;
    for (int i = 0; i < SLOTS; i++)
        rows += fresh[i];
    both[0].engine->backend->multiprocessors = given.multiprocessors;
    for (int s = 0; s < 2; s++) {
        for (int i = 0; i < SLOTS; i++)
            if (failed("kt_batch_set", kt_batch_set(both[s].batch, i, both[s].sequences[i], fresh[i], -1)))
                return false;
        if (failed(both[s].name, kt_step_begin(both[s].batch, nullptr)))
            return false;
    }
    const int q_heads = KV_HEADS * group_heads;
    for (int layer = 0; layer < LAYERS; layer++) {
        tensors t;
        t.query_row = q_heads * dim + (padded ? 8 : 0), t.kv_row = KV_HEADS * dim + (padded ? 16 : 0);
        fill(t.query, dtype, rows, q_heads, dim, t.query_row, false, false);
        fill(t.key, dtype, rows, KV_HEADS, dim, t.kv_row, true, layer == 1);
        fill(t.value, dtype, rows, KV_HEADS, dim, t.kv_row, false, layer == 1);
        for (int s = 0; s < 2; s++) {
            kt_append_args a = {};
            a.size = sizeof a, a.layer = layer, a.key = t.key.data(), a.value = t.value.data();
            a.key_row = a.value_row = t.kv_row;
            a.flags = given.what != step::PREFILL && layer ? KT_APPEND_BEHIND_ATTEND : 0;
            if (failed(both[s].name, kt_append(both[s].batch, &a)) ||
                (given.what != step::PREFILL && !attend(&both[s], layer, t, rows, q_heads, dim, 0)))
                return false;
        }
        const double limit = dtype ? 8e-3 : 2e-3;
        if (given.what != step::PREFILL && !compare_outputs(both[0], both[1], dtype, "attend", limit))
            return false;
        if (given.what == step::REFERENCE && (!attend(&both[0], layer, t, rows, q_heads, dim, KT_ATTEND_REFERENCE) ||
                                              !compare_outputs(both[0], both[1], dtype, "reference", limit / 2)))
            return false;
    }
    for (int s = 0; s < 2; s++)
        if (failed(both[s].name, kt_step_commit(both[s].batch)))
            return false;
    return true;
}

// Sealed blocks byte for byte, all tokens as decoded, lengths and counters.
bool compare_caches(const side *both, const kt_engine_info &info, const kt_format &f)
{
    kt_poll_info poll[2];
    for (int s = 0; s < 2; s++) {
        poll[s].size = sizeof poll[s];
        if (failed("kt_poll", kt_poll(both[s].batch, &poll[s])))
            return false;
    }
    if (poll[0].overruns || poll[0].nonfinite != poll[1].nonfinite) {
        printf("  counters: %d overruns, %llu not finite; the CPU has %llu\n", poll[0].overruns, (unsigned long long)poll[0].nonfinite,
               (unsigned long long)poll[1].nonfinite);
        return false;
    }
    for (int i = 0; i < SLOTS; i++) {
        int tokens = 0;
        if (failed("kt_sequence_tokens", kt_sequence_tokens(both[0].cache, both[0].sequences[i], &tokens)))
            return false;
        const int pages = kt_sealed_pages(tokens, f.sink, f.key_window, f.page);
        const int value_pages = kt_sealed_pages(tokens, f.sink, f.value_window, f.page);
        for (int at = 0; at < LAYERS * KV_HEADS; at++) {
            const int layer = at / KV_HEADS, head = at % KV_HEADS;
            std::vector<unsigned char> block[2];
            std::vector<float> read[2];
            for (int page = 0; page < pages; page++) {
                for (int s = 0; s < 2; s++) {
                    block[s].assign(info.block_bytes, 0);
                    if (failed("kt_read_block", kt_read_block(both[s].cache, both[s].sequences[i], layer, head, page, block[s].data())))
                        return false;
                    if (page >= value_pages) { // not sealed yet
                        memset(&block[s][KT_HEADER_VALUE_FLAGS], 0, 2);
                        memset(&block[s][(size_t)f.value_tiles], 0, block[s].size() - (size_t)f.value_tiles);
                    }
                }
                for (size_t b = 0; b < block[0].size(); b++)
                    if (block[0][b] != block[1][b]) {
                        printf("  block of sequence %d, layer %d, head %d, page %d: byte %zu is 0x%02x, on the CPU 0x%02x\n", i, layer, head,
                               page, b, block[0][b], block[1][b]);
                        return false;
                    }
            }
            for (int part = 0; tokens && part < 2; part++)
                for (int s = 0; s < 2; s++) {
                    read[s].resize((size_t)(tokens * f.head_dim));
                    if (failed("kt_read", kt_read(both[s].cache, both[s].sequences[i], layer, head, (kt_part)part, 0, tokens, read[s].data())))
                        return false;
                    if (s && memcmp(read[0].data(), read[1].data(), read[0].size() * sizeof(float))) {
                        printf("  %s of sequence %d, layer %d, head %d differ from the CPU's\n", part ? "values" : "keys", i, layer, head);
                        return false;
                    }
                }
        }
    }
    return true;
}

bool run_kernel(const char *folder, const kt_format &f, int attend, uint64_t seed)
{
    side both[2] = {};
    kt_engine_info info = {};
    both[0].name = "emulated", both[1].name = "CPU";
    state = seed;
    setenv("KT_EMULATE_UNITS", attend % 2 ? "3" : "1000", 1); // a block to each unit of append, or several
    bool good = open_side(&both[0], folder, KT_DEVICE_CUDA, attend, &info) && open_side(&both[1], folder, KT_DEVICE_CPU, attend, &info);
    const int page = f.page, ahead = f.sink + (f.key_window > f.value_window ? f.key_window : f.value_window);
    const step steps[] = {
        {{ahead + page + 5, 7, 0}, step::PREFILL, 1}, // over a page boundary, below the sinks, idle
        {{1, 1, 1}, step::REFERENCE, 4},
        {{3, 8, 2}, step::ATTEND, 1},                 // several tokens each see those before them
        {{page - 6, 33, page + 1}, step::PREFILL, 1}, // pieces; the first sequence seals another page
        {{1, ahead + 1100, 1}, step::PREFILL, 1},
        {{1, 1, 1}, step::ATTEND, 1},
        {{0, 2, 1}, step::ATTEND, 24},
        {{0, 0, 1}, step::ATTEND, 1},
    };
    for (int i = 0; good && i < (int)(sizeof steps / sizeof steps[0]); i++) {
        good = run_step(both, steps[i], f.dtype, f.group_heads, f.head_dim, i % 2) && compare_caches(both, info, f);
        if (!good)
            printf("  step %d, %s, seed %llu\n", i, both[0].engine->package.kernels[attend].name, (unsigned long long)seed);
    }
    for (int s = 0; s < 2; s++)
        if (both[s].engine)
            close_side(&both[s]);
    return good;
}

bool run_package(const char *folder, uint64_t seed)
{
    kt__package package = {};
    if (failed("kt__package_read", kt__package_read(folder, &package)))
        return false;
    bool good = true;
    for (int i = 0; i < package.kernel_count; i++)
        if (package.kernels[i].op == KT__ATTEND)
            good = run_kernel(folder, package.format, i, seed + (uint64_t)i) && good;
    kt__package_free(&package);
    return good;
}

}

int main(int argc, char **argv)
{
    uint64_t seed = 1;
    bool good = true;
    int packages = 0;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "--seed") && i + 1 < argc)
            seed = strtoull(argv[++i], nullptr, 10);
        else {
            const bool fine = run_package(argv[i], seed);
            printf("%s %s\n", fine ? "ok  " : "FAIL", argv[i]);
            fflush(stdout);
            good = good && fine;
            packages++;
        }
    }
    if (!packages) {
        fprintf(stderr, "usage: kernels PACKAGE... [--seed N]\n");
        return 2;
    }
    return good ? 0 : 1;
}
