// Batches: slots at fixed device addresses, and what of them the device has to be told.
#include "core.h"

#include <stdlib.h>
#include <string.h>

enum { MOST_SLOTS = 65535, MOST_ROWS = 1 << 24, MOST_TOKENS = 1 << 30 };

static kt_status check_args(const kt_batch_args *args)
{
    const struct {
        const char *name;
        int value, most;
    } fields[] = {{"slots", args->slots, MOST_SLOTS}, {"max_tokens", args->max_tokens, MOST_TOKENS}, {"max_rows", args->max_rows, MOST_ROWS}};
    for (int i = 0; i < 3; i++)
        if (fields[i].value < 1 || fields[i].value > fields[i].most)
            return kt__fail(KT_INVALID, "kt_batch_open: %s is %d; 1 to %d are allowed", fields[i].name, fields[i].value,
                            fields[i].most);
    return KT_OK;
}

// Room for the partial results of this many blocks per multiprocessor. Splits are as many for each sequence of a batch, so very unequal
// lengths need more of it than blocks run at once; where it does not suffice, there are fewer splits.
enum { WORKSPACE_BLOCKS = 16 };

static kt_status size_workspace(kt_batch *b)
{
    const kt_engine *engine = b->cache->engine;
    int most = 1, kernel;
    for (int i = 0; i < KT__OP_COUNT * engine->package.format_count; i++) {
        const int op = i % KT__OP_COUNT, format = i / KT__OP_COUNT;
        if (op == KT__REFERENCE || (format && op != KT__ATTEND && op != KT__APPEND)) // a check may be missing; others are of all formats
            continue;
        const kt_status status = kt__pick(engine, (kt__op)op, format, b->slots, b->table_stride, &kernel, NULL);
        if (status)
            return kt__within(status, "kt_batch_open");
    }
    for (int i = 0; i < engine->package.choice_count; i++)
        if (engine->package.choices[i].op == KT__ATTEND && engine->package.choices[i].blocks_per_sm > most)
            most = engine->package.choices[i].blocks_per_sm;
    b->arrival_count = (size_t)WORKSPACE_BLOCKS * (size_t)most * (size_t)engine->backend->multiprocessors;
    b->partial_floats = b->arrival_count * (size_t)engine->package.formats[0].group_heads *
                        (size_t)(engine->package.formats[0].head_dim + 2);
    return KT_OK;
}

static kt_status allocate_host(kt_batch *b)
{
    const size_t slots = (size_t)b->slots, layers = (size_t)b->cache->layers;
    b->entries = calloc(slots, sizeof *b->entries);
    b->planned = calloc(slots, sizeof *b->planned);
    b->uploaded = calloc(slots, sizeof *b->uploaded);
    b->table = calloc(slots * (size_t)b->table_stride, sizeof *b->table);
    b->stamps = calloc(slots, sizeof *b->stamps);
    b->pages_before = calloc(slots, sizeof *b->pages_before);
    b->shared = calloc(slots * (size_t)b->half_pages + 1, sizeof *b->shared);
    b->views = calloc(layers, sizeof *b->views);
    b->appended = calloc(layers, sizeof *b->appended);
    b->items = calloc(slots, sizeof *b->items);
    b->lengths = calloc(slots, sizeof *b->lengths);
    b->copies = calloc(slots + 1, sizeof *b->copies);
    b->row_owner = calloc((size_t)b->max_rows, sizeof *b->row_owner);
    if (!b->entries || !b->planned || !b->uploaded || !b->table || !b->stamps || !b->pages_before || !b->shared || !b->views || !b->items || !b->lengths ||
        !b->copies || !b->appended || !b->row_owner)
        return kt__fail(KT_MEMORY, "kt_batch_open: no host memory for %d slots of %d pages", b->slots, b->table_stride);
    return KT_OK;
}

static kt_status allocate_device(kt_batch *b)
{
    kt__backend *backend = b->cache->engine->backend;
    const size_t slots = (size_t)b->slots;
    const struct {
        size_t bytes;
        void **to;
    } parts[] = {
        {slots * sizeof(kt_slot), (void **)&b->slots_device},
        {slots * (size_t)b->table_stride * sizeof(int), (void **)&b->table_device},
        {sizeof(kt_control), (void **)&b->control_device},
        {b->partial_floats * sizeof(float), (void **)&b->partial},
        {b->arrival_count * sizeof(int), (void **)&b->arrivals},
    };
    kt_status status;
    for (unsigned i = 0; i < sizeof parts / sizeof *parts; i++)
        if ((status = backend->calls->alloc(backend, parts[i].bytes, parts[i].to)))
            return kt__within(status, "kt_batch_open");
    if ((status = backend->calls->mirror_alloc(backend, sizeof(kt_control), (void **)&b->mirror)))
        return kt__within(status, "kt_batch_open");
    return KT_OK;
}

static void destroy(kt_batch *b)
{
    kt__backend *backend = b->cache->engine->backend;
    void *const device[] = {b->slots_device, b->table_device, b->control_device, b->partial, b->arrivals};
    for (unsigned i = 0; i < sizeof device / sizeof *device; i++)
        if (device[i])
            backend->calls->free(backend, device[i]);
    if (b->mirror)
        backend->calls->mirror_free(backend, b->mirror);
    free(b->entries);
    free(b->planned);
    free(b->uploaded);
    free(b->table);
    free(b->stamps);
    free(b->pages_before);
    free(b->shared);
    free(b->views);
    free(b->appended);
    free(b->items);
    free(b->lengths);
    free(b->copies);
    free(b->row_owner);
    free(b);
}

kt_status kt_batch_open(kt_cache *cache, const kt_batch_args *args, kt_batch **batch)
{
    kt_status status;
    if (!cache || !args || !batch)
        return kt__fail(KT_INVALID, "kt_batch_open: %s is null", !cache ? "cache" : !args ? "args" : "batch");
    if ((status = kt__check_size(args->size, sizeof *args, "kt_batch_open", "kt_batch_args")) || (status = check_args(args)))
        return status;
    kt_batch *b = calloc(1, sizeof *b);
    if (!b)
        return kt__fail(KT_MEMORY, "kt_batch_open: no memory for a batch");
    const kt__package *p = &cache->engine->package;
    b->cache = cache;
    b->slots = args->slots;
    b->max_tokens = args->max_tokens;
    b->max_rows = args->max_rows;
    b->table_stride = kt__pages_for(p, args->max_tokens);
    b->table_stride = b->table_stride ? b->table_stride : 1;
    b->half_pages = (p->reaches[p->reach_count - 1] - p->reaches[0] + p->formats[0].page - 1) / p->formats[0].page;
    b->uploaded_valid = true; // both sides are zero
    if ((status = size_workspace(b)) || (status = allocate_host(b)) || (status = allocate_device(b)))
        goto fail;
    for (int slot = 0; slot < b->slots; slot++)
        b->entries[slot].row = -1;
    for (int layer = 0; layer < cache->layers; layer++)
        b->views[layer] = (kt_view){
            .pages = kt__layer_pages(cache, layer), .slabs = kt__layer_slabs(cache, layer), .slots = b->slots_device,
            .table = b->table_device, .control = b->control_device, .table_stride = b->table_stride,
            .slot_count = b->slots, .kv_heads = cache->kv_heads, .layer = layer,
            .calibration = cache->engine->tables ? cache->engine->tables + kt__layer_tables(p, layer) : NULL,
        };
    b->next = cache->batches;
    cache->batches = b;
    *batch = b;
    return KT_OK;

fail:
    destroy(b);
    return status;
}

void kt_batch_close(kt_batch *batch)
{
    if (!batch)
        return;
    if (batch->open)
        kt__step_drop(batch);
    kt_batch **link = &batch->cache->batches;
    while (*link != batch)
        link = &(*link)->next;
    *link = batch->next;
    destroy(batch);
}

kt_status kt_batch_set(kt_batch *b, int slot, kt_sequence sequence, int fresh, int row)
{
    if (!b)
        return kt__fail(KT_INVALID, "kt_batch_set: batch is null");
    if (b->open)
        return kt__fail(KT_ORDER, "kt_batch_set: the batch has an open step; commit or abort it first");
    if (slot < 0 || slot >= b->slots)
        return kt__fail(KT_INVALID, "kt_batch_set: slot is %d; the batch has slots 0 to %d", slot, b->slots - 1);
    if (!sequence) {
        b->ahead = false;
        b->entries[slot] = (kt__entry){.row = -1};
        return KT_OK;
    }
    kt__sequence *s = kt__sequence_find(b->cache, sequence, "kt_batch_set");
    if (!s)
        return KT_STALE;
    if (fresh < 0 || fresh > b->max_rows)
        return kt__fail(KT_INVALID, "kt_batch_set: fresh is %d in slot %d; 0 to %d (max_rows) are allowed", fresh, slot, b->max_rows);
    if (row >= 0 && row > b->max_rows - fresh)
        return kt__fail(KT_INVALID, "kt_batch_set: slot %d has rows %d to %lld; the batch has rows 0 to %d (max_rows)", slot, row,
                        (long long)row + fresh - 1, b->max_rows - 1);
    for (int other = 0; other < b->slots; other++)
        if (other != slot && b->entries[other].sequence == sequence)
            return kt__fail(KT_INVALID, "kt_batch_set: sequence %#llx is in slot %d already; empty that slot first",
                            (unsigned long long)sequence, other);
    // Steps do not allocate: the list of pages gets its room here.
    const kt_status status = kt__sequence_room(s, b->table_stride);
    if (status)
        return kt__within(status, "kt_batch_set");
    b->ahead = false;
    b->entries[slot] = (kt__entry){sequence, fresh, row < 0 ? -1 : row};
    return KT_OK;
}

kt__sequence *kt__batch_sequence(const kt_batch *b, int slot)
{
    return &b->cache->sequences[(b->entries[slot].sequence & 0xffffffff) - 1];
}

// Takes rows for a slot; two slots cannot share any.
static kt_status claim_rows(kt_batch *b, int slot, const char *call)
{
    const kt_slot *p = &b->planned[slot];
    for (int row = p->row; row < p->row + p->fresh; row++) {
        if (b->row_owner[row] > b->row_stamp)
            return kt__fail(KT_INVALID, "%s: row %d belongs to slots %d and %d; give them rows of their own", call, row,
                            (int)(b->row_owner[row] - b->row_stamp - 1), slot);
        b->row_owner[row] = b->row_stamp + 1 + (unsigned)slot;
    }
    return KT_OK;
}

static kt_status plan_slot(kt_batch *b, int slot, long long row, const char *call)
{
    const kt__package *package = &b->cache->engine->package;
    const kt__entry *entry = &b->entries[slot];
    const kt__sequence *s = kt__batch_sequence(b, slot);
    const long long after = (long long)s->tokens + entry->fresh;
    if (s->step)
        return kt__fail(KT_ORDER, "%s: the sequence in slot %d is part of an open step of another batch", call, slot);
    if (row + entry->fresh > b->max_rows)
        return kt__fail(KT_INVALID, "%s: slot %d has rows %lld to %lld; the batch has rows 0 to %d (max_rows)", call, slot, row,
                        row + entry->fresh - 1, b->max_rows - 1);
    if (after > b->max_tokens)
        return kt__fail(KT_INVALID, "%s: the sequence in slot %d has %d tokens and %d new ones; the batch was opened for %d "
                        "(max_tokens)", call, slot, s->tokens, entry->fresh, b->max_tokens);
    const int pages = s->page_count < b->table_stride ? s->page_count : b->table_stride, capacity = kt__capacity(package, pages);
    b->planned[slot] = (kt_slot){
        .tokens = s->tokens, .fresh = entry->fresh, .row = (int)row, .slab = s->slab, .slab_next = s->slab,
        .capacity = capacity < b->max_tokens ? capacity : b->max_tokens,
    };
    const int needed = kt__pages_for(package, (int)after);
    b->active++;
    b->used_slots = slot + 1;
    b->max_fresh = entry->fresh > b->max_fresh ? entry->fresh : b->max_fresh;
    b->rows = row + entry->fresh > b->rows ? (int)row + entry->fresh : b->rows;
    b->max_pages = needed > b->max_pages ? needed : b->max_pages;
    b->max_pages = pages > b->max_pages ? pages : b->max_pages;
    return claim_rows(b, slot, call);
}

// Append's units of work in a slot: the exact tokens, and each page that the step seals; of the format that has most.
static int units_of(const kt__package *package, const kt_slot *p)
{
    int most = 1;
    for (int i = 0; i < package->format_count; i++) {
        const kt_format *f = &package->formats[i];
        int units = 1;
        for (int part = KT_KEY; part <= KT_VALUE; part++)
            units += kt_sealed(f, part, p->tokens + p->fresh) - kt_sealed(f, part, p->tokens);
        most = units > most ? units : most;
    }
    return most;
}

// A launch is as wide as its slots times the most that one of them brings, and a block that finds nothing to do costs little, but a long
// prompt among many decoding slots would launch thousands of them for each that works. So slots are launched in runs, each of not many
// more places than rows; the last run takes what remains.
static void plan_runs(kt_batch *b)
{
    enum { WIDTH = 4, SLACK = 1024 };
    long long rows = 0;
    kt__run *run = NULL;
    b->run_count = 0;
    for (int slot = 0; slot < b->used_slots; slot++) {
        const kt_slot *p = &b->planned[slot];
        const int units = p->fresh ? units_of(&b->cache->engine->package, p) : 1;
        const long long widest = run && run->max_fresh > p->fresh ? run->max_fresh : p->fresh;
        if (!run || (b->run_count < KT__RUNS && (slot + 1 - run->first) * widest > WIDTH * (rows + p->fresh) + SLACK)) {
            run = &b->runs[b->run_count++];
            *run = (kt__run){.first = slot, .units = 1};
            rows = 0;
        }
        run->count = slot + 1 - run->first;
        run->max_fresh = p->fresh > run->max_fresh ? p->fresh : run->max_fresh;
        run->units = units > run->units ? units : run->units;
        rows += p->fresh;
    }
}

static bool longer(kt__length a, kt__length b) { return a.tokens != b.tokens ? a.tokens > b.tokens : a.slot < b.slot; }

// Shell's: qsort may allocate.
static void sort_longest_first(kt__length *lengths, int count)
{
    int gap = 1;
    while (gap < count / 3)
        gap = 3 * gap + 1;
    for (; gap; gap /= 3)
        for (int i = gap; i < count; i++) {
            const kt__length moved = lengths[i];
            int at = i;
            for (; at >= gap && longer(moved, lengths[at - gap]); at -= gap)
                lengths[at] = lengths[at - gap];
            lengths[at] = moved;
        }
}

// Where lengths are uneven blocks go by length: a long one that starts last would end alone.
static void order_slots(kt_batch *b)
{
    int least = MOST_TOKENS, most = 0;
    for (int slot = 0; slot < b->used_slots; slot++) {
        const kt_slot *p = &b->planned[slot];
        b->lengths[slot] = (kt__length){p->fresh ? p->tokens : -1, slot};
        if (p->fresh) {
            least = p->tokens < least ? p->tokens : least;
            most = p->tokens > most ? p->tokens : most;
        }
    }
    b->ordered = kt__uneven(least, most) && b->run_count == 1; // the order is of all slots
    if (b->ordered)
        sort_longest_first(b->lengths, b->used_slots);
    // Of all slots: a captured step goes over unused ones too, and may have been captured in order of length.
    for (int slot = 0; slot < b->slots; slot++)
        b->planned[slot].order = b->ordered && slot < b->used_slots ? b->lengths[slot].slot : slot;
}

kt_status kt__batch_plan(kt_batch *b, const char *call)
{
    kt_status status;
    long long row = 0;
    b->active = b->max_fresh = b->rows = b->max_pages = b->used_slots = 0;
    b->row_stamp += (unsigned)b->slots + 1;
    memset(b->planned, 0, (size_t)b->slots * sizeof *b->planned);
    for (int slot = 0; slot < b->slots; slot++) {
        const kt__entry *entry = &b->entries[slot];
        if (entry->fresh && (status = plan_slot(b, slot, entry->row < 0 ? row : entry->row, call)))
            return status;
        row += entry->fresh;
    }
    plan_runs(b);
    order_slots(b);
    return KT_OK;
}

bool kt__batch_current(const kt_batch *b)
{
    if (!b->uploaded_valid || memcmp(b->planned, b->uploaded, (size_t)b->slots * sizeof *b->planned))
        return false;
    for (int slot = 0; slot < b->slots; slot++)
        if (b->planned[slot].fresh && b->stamps[slot] != kt__batch_sequence(b, slot)->stamp)
            return false;
    return true;
}

// Adds the end of a slot's table row, from the first page that differs, to the copies. Short gaps between rows are copied too, which
// costs less than another copy: they hold what the device has.
static int add_row(kt_batch *b, int slot, int count, size_t *gaps)
{
    enum { MOST_GAP = 16 << 10, MOST_GAPS = 1 << 20 };
    const kt__sequence *s = kt__batch_sequence(b, slot);
    if (b->stamps[slot] == s->stamp)
        return count;
    const size_t start = (size_t)slot * (size_t)b->table_stride;
    int *row = b->table + start;
    const int pages = s->page_count < b->table_stride ? s->page_count : b->table_stride;
    int first = 0;
    while (first < pages && row[first] == s->pages[first])
        first++;
    b->stamps[slot] = s->stamp;
    if (first == pages)
        return count;
    const size_t bytes = (size_t)(pages - first) * sizeof *row;
    memcpy(row + first, s->pages + first, bytes);
    if (count) {
        kt__copy *last = &b->copies[count - 1];
        const size_t gap = (size_t)((const char *)(row + first) - ((const char *)last->from + last->bytes));
        if (gap <= MOST_GAP && *gaps + gap <= MOST_GAPS) {
            *gaps += gap;
            last->bytes += gap + bytes;
            return count;
        }
    }
    b->copies[count] = (kt__copy){b->table_device + start + first, row + first, bytes};
    return count + 1;
}

kt_status kt__batch_flush(kt_batch *b, void *stream)
{
    kt__backend *backend = b->cache->engine->backend;
    const size_t bytes = (size_t)b->slots * sizeof *b->planned;
    size_t gaps = 0;
    int count = 0;
    for (int slot = 0; slot < b->slots; slot++)
        if (b->planned[slot].fresh)
            count = add_row(b, slot, count, &gaps);
    if (!b->uploaded_valid || memcmp(b->planned, b->uploaded, bytes))
        b->copies[count++] = (kt__copy){b->slots_device, b->planned, bytes};
    const kt_status status = count ? backend->calls->upload(backend, b->copies, count, stream) : KT_OK;
    b->uploaded_valid = !status;
    if (!status) {
        memcpy(b->uploaded, b->planned, bytes);
    } else { // what arrived is unknown; no page has number -1, no list stamp 0
        memset(b->table, 0xff, (size_t)b->slots * (size_t)b->table_stride * sizeof *b->table);
        memset(b->stamps, 0, (size_t)b->slots * sizeof *b->stamps);
    }
    return status;
}

kt_status kt__batch_withdraw(kt_batch *b, void *stream)
{
    kt__backend *backend = b->cache->engine->backend;
    const size_t bytes = (size_t)b->slots * sizeof *b->uploaded;
    memset(b->uploaded, 0, bytes);
    const kt_status status = backend->calls->upload(backend, &(kt__copy){b->slots_device, b->uploaded, bytes}, 1, stream);
    b->uploaded_valid = !status;
    return status;
}

kt_status kt__batch_check_rows(const kt_batch *b, const char *call)
{
    if (!b->captured_rows || b->rows <= b->captured_rows)
        return KT_OK;
    return kt__fail(KT_INVALID, "%s: the slots have rows up to %d; a step of this batch was captured for rows 0 to %d", call, b->rows - 1,
                    b->captured_rows - 1);
}

kt_status kt_batch_upload(kt_batch *b, void *stream)
{
    kt_status status;
    bool capturing;
    if (!b)
        return kt__fail(KT_INVALID, "kt_batch_upload: batch is null");
    if (b->open)
        return kt__fail(KT_ORDER, "kt_batch_upload: the batch has an open step; commit or abort it first");
    kt__backend *backend = b->cache->engine->backend;
    if ((status = backend->calls->capturing(backend, stream, &capturing)))
        return kt__within(status, "kt_batch_upload");
    if (capturing)
        return kt__fail(KT_ORDER, "kt_batch_upload: the stream is under graph capture; upload before the capture begins");
    if ((status = kt__batch_plan(b, "kt_batch_upload")))
        return status;
    for (int slot = 0; slot < b->slots; slot++)
        if (b->planned[slot].fresh > 1)
            return kt__fail(KT_INVALID, "kt_batch_upload: slot %d has fresh %d; a captured step brings at most one token per slot",
                            slot, b->planned[slot].fresh);
    if ((status = kt__batch_check_rows(b, "kt_batch_upload")))
        return status;
    if ((status = kt__unshare(b, stream)))
        return kt__within(status, "kt_batch_upload");
    b->uploaded_valid = false; // replays that the host was not told of may have moved them on
    if ((status = kt__batch_flush(b, stream)))
        return kt__within(status, "kt_batch_upload");
    b->ahead = true;
    return KT_OK;
}
