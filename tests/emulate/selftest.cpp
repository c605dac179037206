// The emulator on kernels with a planted fault each (faults/): every fault must be found, named by its kind and placed at the right
// line of source, with every seed; without the fault nothing may be reported and the results must be right.
//
//   selftest FOLDER     where compiled kernels go
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "emulate_host.h"

// From the emulator's library; declared here as emulate.h would also bring the device's language.
extern "C" float half_to_float(uint16_t h);
extern "C" uint16_t float_to_half(float f);
extern "C" uint16_t float_to_bfloat(float f);

namespace {

struct planted {
    const uint32_t *in;
    uint32_t *out;
    int *counter;
    int fault;
};

enum { RESULT = EMULATE_KINDS, SEEDS = 6, OVERLAPS = 4 }; // RESULT: no report, but out[i] != out[512 + i] somewhere

struct file {
    const char *name;
    unsigned grid, threads;
    size_t shared;
    bool results; // out[i] must equal out[512 + i]
    emulate_kernel *kernel;
};
file files[] = {
    {"memory", 2, 64, 1024, false, nullptr}, {"meeting", 2, 96, 512, false, nullptr},   {"race", 4, 64, 512, false, nullptr},
    {"copies", 2, 64, 1152, false, nullptr}, {"matrix", 1, 32, 768, true, nullptr},     {"primitives", 1, 64, 64, true, nullptr},
};
enum { MEMORY, MEETING, RACE, COPIES, MATRIX, PRIMITIVES, FILES };

// Found if a report is of `kind`, or by the order that a seed gives of kind `other`, and holds `text`. `bulk`: 1 or 0 with only bulk copies or cp.async, -1 both.
struct fault {
    int file, number, kind, bulk;
    const char *text;
    int other;
};
const fault faults[] = {
    {MEMORY, 1, EMULATE_UNINITIALISED, -1, "shared+", 0},
    {MEMORY, 2, EMULATE_UNINITIALISED, -1, "'out'+", 0},
    {MEMORY, 3, EMULATE_UNINITIALISED, 1, "nor what was copied there", 0},
    {MEMORY, 4, EMULATE_BOUNDS, -1, "write of 1 bytes at shared+1024 of 1024 bytes", 0},
    {MEMORY, 5, EMULATE_BOUNDS, -1, "read of 4 bytes at 'in'+4096 of 4096 bytes", 0},
    {MEMORY, 6, EMULATE_BOUNDS, 1, "read of 64 bytes at 'in'+4048 of 4096 bytes", 0},
    {MEMORY, 7, EMULATE_BOUNDS, -1, "read of 1 bytes at 1 bytes before 'in'", 0},
    {MEMORY, 8, EMULATE_ALIGNMENT, -1, "thread 40 ", 0},
    {MEMORY, 9, EMULATE_ALIGNMENT, -1, "aligned to 8", 0},
    {MEMORY, 10, EMULATE_ALIGNMENT, 1, "bulk_copy of 64 bytes from 'in'+8", 0},
    {MEMORY, 11, EMULATE_BOUNDS, -1, "'out'+4084", 0},
    {MEMORY, 12, EMULATE_ASSUMPTION, -1, "thread 63 ", 0},
    {MEMORY, 13, EMULATE_BOUNDS, -1, "local memory of another thread", 0},
    {MEETING, 1, EMULATE_BARRIER, -1, "threads 64-95: exited", 0},
    {MEETING, 2, EMULATE_BARRIER, -1, "at another __syncthreads", 0},
    {MEETING, 3, EMULATE_BARRIER, -1, "", 0},
    {MEETING, 4, EMULATE_MASK, -1, "mask 0xffffffff", 0},
    {MEETING, 5, EMULATE_MASK, -1, "mask 0x0000ffff", 0},
    {MEETING, 6, EMULATE_MASK, -1, "exited", 0},
    {MEETING, 7, EMULATE_MASK, -1, "reads lane 20", 0},
    {MEETING, 8, EMULATE_MASK, -1, "a shuffle", 0},
    {MEETING, 9, EMULATE_MASK, -1, "an mma", 0},
    {MEETING, 10, EMULATE_ENDLESS, -1, "does not end", 0},
    {RACE, 1, EMULATE_RACE, -1, "shared+", 0},
    {RACE, 2, EMULATE_RACE, -1, "shared+", 0},
    {RACE, 3, EMULATE_RACE, -1, "after the read by warp", 0},
    {RACE, 4, EMULATE_RACE, -1, "'out'+", 0},
    {RACE, 5, EMULATE_RACE, -1, "'out'+", 0},
    {RACE, 6, EMULATE_RACE, -1, "'counter'+0", 0},
    {RACE, 7, EMULATE_RACE, -1, "'out'+2048", 0},
    {RACE, 8, EMULATE_RACE, -1, "'out'+2800", 0},
    {RACE, 9, EMULATE_RACE, -1, "", 0},
    {RACE, 10, EMULATE_RACE, -1, "'counter'+0", 0},
    {RACE, 11, EMULATE_RACE, -1, "shared+", 0},
    {COPIES, 1, EMULATE_WAIT, 1, "a bulk copy for mbarrier", 0},
    {COPIES, 2, EMULATE_WAIT, 1, "mbarrier", EMULATE_COPY},
    {COPIES, 3, EMULATE_WAIT, 0, "a 16-byte copy by thread", 0},
    {COPIES, 4, EMULATE_RACE, -1, "after the read by warp", 0},
    {COPIES, 5, EMULATE_WAIT, -1, "nobody waits for before the block ends", 0},
    {COPIES, 6, EMULATE_COPY, 1, "misses 0 arrivals and 16 bytes", 0},
    {COPIES, 7, EMULATE_COPY, 1, "no barrier_init_fence", 0},
    {COPIES, 8, EMULATE_RACE, 1, "barrier_", EMULATE_COPY},
    {COPIES, 9, EMULATE_COPY, 1, "barrier_expect", 0},
    {COPIES, 10, EMULATE_COPY, -1, "which holds an mbarrier", 0},
    {COPIES, 11, EMULATE_WAIT, 0, "a 16-byte copy by thread", 0},
    {COPIES, 12, EMULATE_WAIT, 1, "the source of a copy under way", 0},
    {COPIES, 13, EMULATE_WAIT, 1, "a bulk copy for mbarrier", 0},
    {COPIES, 14, EMULATE_COPY, 0, "a card without bulk copies", 0},
    {MATRIX, 1, RESULT, -1, "", 0},
    {MATRIX, 2, RESULT, -1, "", 0},
    {MATRIX, 3, RESULT, -1, "", 0},
    {MATRIX, 4, RESULT, -1, "", 0},
};

int failures;
planted params;

void fail(const std::string &text)
{
    printf("FAIL %s\n", text.c_str());
    failures++;
}

emulate_kernel *build_one(const std::string &folder, const char *name, std::string *error)
{
    char text[2048] = "";
    const std::string source = std::string(EMULATE_FOLDER) + "/faults/" + name + ".cu", object = folder + "/" + name + ".so";
    const emulate_build build = {source.c_str(), name, object.c_str(), 1};
    emulate_kernel *kernel = emulate_compile(&build, text, sizeof text) ? nullptr : emulate_load(object.c_str(), name, text, sizeof text);
    if (!kernel)
        *error += std::string(name) + ": " + text;
    return kernel;
}

int run(const file &f, int bulk, int fault, uint64_t seed, const emulate_report **reports)
{
    emulate_launch_args args = {{f.grid, 1, 1}, {f.threads, 1, 1}, f.shared, &params, sizeof params, seed, 0, bulk, 0};
    memset(params.out, 0xd7, 4096);
    emulate_initialised(params.out, 4096, 0);
    memset(params.counter, 0, 16);
    params.fault = fault;
    return emulate_launch(f.kernel, &args, reports);
}

// Launches that overlap: sound when `fault` is 0, else a report of the launch at fault, whichever role it has.
void test_overlap(const emulate_kernel *kernel, int fault)
{
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        std::string all;
        bool race = false;
        memset(params.out, 0, 4096);
        emulate_initialised(params.out, 4096, 1);
        emulate_settle();
        for (int role = 0; role < 3; role++) {
            const emulate_report *reports;
            emulate_launch_args args = {{2, 1, 1}, {32, 1, 1}, 0, &params, sizeof params, seed, 0, 1, 1};
            params.fault = 8 * fault + role;
            const int count = emulate_launch(kernel, &args, &reports);
            for (int i = 0; i < count; i++) {
                race = race || (reports[i].kind == EMULATE_RACE && strstr(reports[i].text, "may still run"));
                all += std::string("\n     ") + reports[i].text;
            }
        }
        if (fault ? !race : !all.empty())
            fail("overlap " + std::to_string(fault) + ", seed " + std::to_string(seed) + ":" + (all.empty() ? " not found" : all));
    }
}

bool results_equal()
{
    return !memcmp(params.out, params.out + 512, 2048);
}

void test_sound(const file &f, int bulk)
{
    for (uint64_t seed = 0; seed < 4 * SEEDS; seed++) {
        const emulate_report *reports;
        const int count = run(f, bulk, 0, seed, &reports);
        for (int i = 0; i < count; i++)
            fail(std::string(f.name) + " is sound, but: " + reports[i].text);
        if (f.results && !results_equal())
            fail(std::string(f.name) + ": wrong results, seed " + std::to_string(seed));
    }
}

void test_fault(const fault &t, int bulk)
{
    const file &f = files[t.file];
    const std::string what = std::string(f.name) + " " + std::to_string(t.number) + (bulk ? " (bulk)" : " (cp.async)");
    for (uint64_t seed = 0; seed < SEEDS; seed++) {
        const emulate_report *reports;
        const int count = run(f, bulk, t.number, seed, &reports);
        bool found = t.kind == RESULT && !count && !results_equal();
        std::string all;
        for (int i = 0; i < count; i++) {
            const bool kind = (int)reports[i].kind == t.kind || (t.other && (int)reports[i].kind == t.other);
            found = found || (kind && strstr(reports[i].text, t.text) && strstr(reports[i].text, f.name) &&
                              strstr(reports[i].text, "block (") && strstr(reports[i].text, "thread ") && strstr(reports[i].text, ".cu:"));
            all += std::string("\n     ") + reports[i].text;
        }
        if (!found) {
            fail(what + ", seed " + std::to_string(seed) + ": not found: " + (t.kind == RESULT ? "wrong results" : emulate_kind_name((emulate_kind)t.kind)) +
                 " \"" + t.text + "\"; reports:" + (all.empty() ? " none" : all));
            return;
        }
    }
}

// A launch that no card would take.
void test_launches()
{
    const file &f = files[PRIMITIVES];
    const struct {
        emulate_launch_args args;
        const char *text;
    } cases[] = {
        {{{1, 1, 1}, {1056, 1, 1}, 0, &params, sizeof params, 0, 0, 1, 0}, "1056 threads"},
        {{{0, 1, 1}, {64, 1, 1}, 0, &params, sizeof params, 0, 0, 1, 0}, "grid 0"},
        {{{1, 65536, 1}, {64, 1, 1}, 0, &params, sizeof params, 0, 0, 1, 0}, "grid 1 x 65536"},
        {{{1, 1, 1}, {64, 1, 1}, 232449, &params, sizeof params, 0, 0, 1, 0}, "232449 bytes of shared memory"},
        {{{1, 1, 1}, {64, 1, 1}, 0, &params, sizeof params - 8, 0, 0, 1, 0}, "24 bytes of parameters"},
    };
    for (const auto &c : cases) {
        const emulate_report *reports;
        const int count = emulate_launch(f.kernel, &c.args, &reports);
        if (count != 1 || reports[0].kind != EMULATE_LAUNCH || !strstr(reports[0].text, c.text))
            fail(std::string("launch refused with \"") + c.text + "\": " + (count ? reports[0].text : "no report"));
    }
}

// Conversions against their definition: nearest representable value, ties to the even bit pattern.
void test_conversions()
{
    for (int h = 0; h < 0x7c00; h++) {
        const double here = half_to_float((uint16_t)h), next = h + 1 < 0x7c00 ? half_to_float((uint16_t)(h + 1)) : 65536.0;
        const double exact = h >> 10 ? ldexp(1024 + (h & 1023), (h >> 10) - 25) : ldexp(h, -24);
        const float middle = (float)((here + next) / 2); // 12 bits: exact
        if (here != exact || float_to_half((float)here) != h || float_to_half(-(float)here) != (h | 0x8000) ||
            float_to_half(middle) != h + (h & 1) || float_to_half(nextafterf(middle, 0)) != h ||
            float_to_half(nextafterf(middle, 1e9f)) != h + 1) {
            fail("float_to_half near 0x" + std::to_string(h));
            break;
        }
    }
    for (uint32_t b = 0; b < 0x7f80; b += b < 0x100 ? 1 : 7) {
        const uint32_t bits = b << 16, tie = bits | 0x8000, below = tie - 1, above = tie + 1;
        float x, at, under, over;
        memcpy(&x, &bits, 4), memcpy(&at, &tie, 4), memcpy(&under, &below, 4), memcpy(&over, &above, 4);
        if (float_to_bfloat(x) != b || float_to_bfloat(at) != b + (b & 1) || float_to_bfloat(under) != b || float_to_bfloat(over) != b + 1) {
            fail("float_to_bfloat near " + std::to_string(b));
            break;
        }
    }
    if (float_to_half(INFINITY) != 0x7c00 || float_to_half(NAN) != 0x7fff || float_to_bfloat(NAN) != 0x7fff || float_to_half(65520.0f) != 0x7c00 ||
        !isnan(half_to_float(0x7c01)) || half_to_float(0xfc00) != -INFINITY)
        fail("conversions of what is not finite");
}

}

int main(int argc, char **argv)
{
    if (argc != 2) {
        fprintf(stderr, "usage: selftest FOLDER\n");
        return 2;
    }
    std::string errors[2];
    emulate_kernel *overlap = nullptr;
    auto build = [&](int half) {
        for (int i = half; i < FILES; i += 2)
            files[i].kernel = build_one(argv[1], files[i].name, &errors[half]);
        if (half)
            overlap = build_one(argv[1], "overlap", &errors[half]);
    };
    std::thread other(build, 0);
    build(1);
    other.join();
    if (!errors[0].empty() || !errors[1].empty()) {
        printf("FAIL %s%s\n", errors[0].c_str(), errors[1].c_str());
        return 1;
    }
    params.in = (uint32_t *)emulate_alloc(4096, 1, "in");
    params.out = (uint32_t *)emulate_alloc(4096, 0, "out");
    params.counter = (int *)emulate_alloc(16, 1, "counter");
    for (uint32_t i = 0; i < 1024; i++)
        ((uint32_t *)params.in)[i] = i * 2654435761u;
    for (const file &f : files)
        for (int bulk = 0; bulk < 2; bulk++)
            test_sound(f, bulk);
    for (const fault &t : faults)
        for (int bulk = 0; bulk < 2; bulk++)
            if (t.bulk < 0 || t.bulk == bulk)
                test_fault(t, bulk);
    for (int i = 0; i <= OVERLAPS; i++)
        test_overlap(overlap, i);
    test_launches();
    test_conversions();
    printf("%zu faults, %d failures\n", sizeof faults / sizeof faults[0] + OVERLAPS, failures);
    return failures != 0;
}
