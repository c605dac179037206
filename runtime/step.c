// Steps: transactions over all layers of a batch.
#include "core.h"

#include <math.h>
#include <stdint.h>

static kt_status launch(kt_batch *b, kt__op op, int kernel, const kt__extent *extent, const void *params, size_t bytes)
{
    kt__backend *backend = b->cache->engine->backend;
    const kt_status status = backend->calls->launch(backend, kernel, extent, params, bytes, b->stream);
    return status ? kt__within(status, "kernel %s", kt__op_names[op]) : KT_OK;
}

static kt__extent extent_of(const kt_batch *b, const kt__run *run)
{
    kt__extent e;
    for (int i = 0; i < KT__FACTOR_COUNT; i++)
        e.ones[i] = 1;
    e.ones[KT__UNITS] = run->units;
    e.ones[KT__KV_HEADS] = b->cache->kv_heads;
    e.ones[KT__Q_HEADS] = b->cache->q_heads;
    e.ones[KT__SLOTS] = run->count;
    e.ones[KT__FRESH] = run->max_fresh;
    return e;
}

static kt_view view_of(const kt_batch *b, int layer, const kt__run *run)
{
    kt_view view = b->views[layer];
    view.slots += run->first;
    view.table += (size_t)run->first * (size_t)b->table_stride;
    view.slot_count = run->count;
    return view;
}

static kt_status launch_step(kt_batch *b, kt__op op)
{
    const kt__extent extent = extent_of(b, &(kt__run){0, b->slots, 1, 1});
    const kt_step_params params = {b->slots_device, b->control_device, b->slots};
    int kernel;
    const kt_status status = kt__pick(b->cache->engine, op, 0, b->active, b->max_pages, &kernel, NULL);
    return status ? status : launch(b, op, kernel, &extent, &params, sizeof params);
}

// ---- begin -----------------------------------------------------------------------------------------------------------

static kt_status check_captured(const kt_batch *b)
{
    for (int slot = 0; slot < b->slots; slot++) {
        const kt_slot *p = &b->planned[slot];
        if (p->fresh > 1)
            return kt__fail(KT_INVALID, "kt_step_begin: slot %d has fresh %d; a captured step brings at most one token per slot",
                            slot, p->fresh);
        if (p->fresh && p->tokens + p->fresh > p->capacity)
            return kt__fail(KT_ORDER, "kt_step_begin: slot %d has %d tokens and its reservation holds %d; reserve ahead of a capture "
                            "(kt_sequence_reserve)", slot, p->tokens, p->capacity);
    }
    if (kt__batch_check_rows(b, "kt_step_begin"))
        return KT_INVALID;
    if (!kt__batch_current(b))
        return kt__fail(KT_ORDER, "kt_step_begin: the slots have changed since they were uploaded; call kt_batch_upload before the "
                        "capture begins");
    return KT_OK;
}

// Whether an eager step follows a kt_batch_upload and could be captured: it gives the bits that a replay would.
static bool is_reserved(const kt_batch *b)
{
    bool fits = b->ahead;
    for (int slot = 0; slot < b->slots && fits; slot++)
        fits = b->planned[slot].fresh <= 1 && b->planned[slot].tokens + b->planned[slot].fresh <= b->planned[slot].capacity;
    return fits;
}

// A captured step may be replayed at any length that was reserved, so its launches depend on the batch and the reservations only.
static void size_for_reservations(kt_batch *b)
{
    b->active = b->used_slots = b->slots;
    b->max_fresh = 1;
    b->runs[0] = (kt__run){0, b->slots, 1, 1};
    b->run_count = 1;
    b->max_pages = b->table_stride;
    b->rows = b->rows > b->slots ? b->rows : b->slots;
}

kt_status kt_step_begin(kt_batch *b, void *stream)
{
    kt_status status;
    if (!b)
        return kt__fail(KT_INVALID, "kt_step_begin: batch is null");
    if (b->open)
        return kt__fail(KT_ORDER, "kt_step_begin: the batch has an open step; commit or abort it first");
    kt__backend *backend = b->cache->engine->backend;
    if ((status = backend->calls->capturing(backend, stream, &b->captured)))
        return kt__within(status, "kt_step_begin");
    if ((status = kt__batch_plan(b, "kt_step_begin")))
        return status;
    if ((status = b->captured ? check_captured(b) : kt__reserve_check(b)))
        return status;
    b->reserved = b->captured || is_reserved(b);
    if (b->reserved)
        size_for_reservations(b);
    b->stream = stream;
    if (!b->captured) {
        if ((status = kt__reserve(b, stream)) || (status = kt__batch_flush(b, stream)))
            goto fail;
    }
    if ((status = launch_step(b, KT__CHECK)))
        goto fail;
    for (int slot = 0; slot < b->slots; slot++)
        if (b->planned[slot].fresh)
            kt__batch_sequence(b, slot)->step = b;
    for (int layer = 0; layer < b->cache->layers; layer++)
        b->appended[layer] = false;
    b->open = true;
    b->deferred = b->written = false;
    for (int i = 0; i < KT_FORMATS; i++)
        b->divided[i].kernel = NULL;
    return KT_OK;

fail:
    kt__within(status, "kt_step_begin");
    if (!b->captured) {
        kt__reserve_undo(b);
        if (kt__batch_withdraw(b, stream))
            return kt__within(status, "kt_step_begin failed, and so did making the slots idle again");
    }
    return status;
}

// ---- append and attend -----------------------------------------------------------------------------------------------

typedef struct {
    const char *name;
    const void *address;
    int64_t row, head; // strides, 0 for contiguous
} operand;

// Checks an operand of [rows, heads, head_dim] and fills in contiguous strides.
static kt_status check_operand(const kt_batch *b, const char *call, int layer, operand *o, int heads)
{
    const int d = b->cache->engine->package.formats[0].head_dim;
    if (!o->address)
        return kt__fail(KT_INVALID, "%s: layer %d: %s is null", call, layer, o->name);
    if ((uintptr_t)o->address % 16)
        return kt__fail(KT_INVALID, "%s: layer %d: %s is at %p; it must be aligned to 16 bytes", call, layer, o->name, o->address);
    if (!o->head)
        o->head = d;
    if (!o->row)
        o->row = (int64_t)heads * d;
    for (int i = 0; i < 2; i++) {
        const int64_t stride = i ? o->head : o->row;
        if (stride % 8 || stride < d)
            return kt__fail(KT_INVALID, "%s: layer %d: %s_%s is %lld; strides are multiples of 8, at least head_dim (%d), or 0 for "
                            "contiguous", call, layer, o->name, i ? "head" : "row", (long long)stride, d);
    }
    return KT_OK;
}

static kt_status check_layer(const kt_batch *b, const char *call, int layer, bool appended)
{
    if (!b->open)
        return kt__fail(KT_ORDER, "%s: the batch has no open step; call kt_step_begin first", call);
    if (layer < 0 || layer >= b->cache->layers)
        return kt__fail(KT_INVALID, "%s: layer is %d; the cache has layers 0 to %d", call, layer, b->cache->layers - 1);
    if (b->appended[layer] == appended)
        return KT_OK;
    return kt__fail(KT_ORDER, "%s: layer %d was %s in this step", call, layer, appended ? "not appended yet" : "appended already");
}

// Blocks for the units of the run's largest slot: enough for some waves over the card, beyond which a block takes several units in
// turn, which spares starts.
static int append_blocks(const kt_batch *b, const kt__run *run, int blocks_per_sm)
{
    enum { WAVES = 8, UNITS = 8 };
    const long long columns = (long long)b->cache->kv_heads * run->count;
    const long long enough = (long long)WAVES * blocks_per_sm * b->cache->engine->backend->multiprocessors / columns + 1;
    const int few = (run->units + UNITS - 1) / UNITS;
    return run->units <= enough ? run->units : few > enough ? few : (int)enough;
}

// Launches a layer's append; behind: the launch ahead is an attend of the same step.
static kt_status launch_append(kt_batch *b, int layer, bool behind)
{
    int kernel, blocks_per_sm;
    const int format = kt__layer_format(&b->cache->engine->package, layer);
    kt_status status = kt__pick(b->cache->engine, KT__APPEND, format, b->active, b->max_pages, &kernel, &blocks_per_sm);
    b->written = true;
    for (int i = 0; i < b->run_count && !status; i++) {
        const kt__run *run = &b->runs[i];
        if (!run->max_fresh)
            continue;
        kt__extent extent = extent_of(b, run);
        extent.ones[KT__UNITS] = append_blocks(b, run, blocks_per_sm);
        const kt_append_params params = {.view = view_of(b, layer, run), .behind = behind};
        status = launch(b, KT__APPEND, kernel, &extent, &params, sizeof params);
    }
    return status;
}

// Launches an append that was put off.
static kt_status settle_append(kt_batch *b, bool behind)
{
    if (!b->deferred)
        return KT_OK;
    const kt_status status = launch_append(b, b->deferred_layer, behind);
    b->deferred = status != KT_OK;
    return status ? kt__within(status, "the append of layer %d", b->deferred_layer) : KT_OK;
}

kt_status kt_append(kt_batch *b, const kt_append_args *args)
{
    kt_status status;
    if (!b || !args)
        return kt__fail(KT_INVALID, "kt_append: %s is null", b ? "args" : "batch");
    if ((status = kt__check_size(args->size, sizeof *args, "kt_append", "kt_append_args")) ||
        (status = check_layer(b, "kt_append", args->layer, false)))
        return status;
    operand key = {"key", args->key, args->key_row, args->key_head};
    operand value = {"value", args->value, args->value_row, args->value_head};
    if ((status = check_operand(b, "kt_append", args->layer, &key, b->cache->kv_heads)) ||
        (status = check_operand(b, "kt_append", args->layer, &value, b->cache->kv_heads)))
        return status;

    if (args->flags & ~(unsigned)KT_APPEND_BEHIND_ATTEND)
        return kt__fail(KT_INVALID, "kt_append: layer %d: flags is %#x; only KT_APPEND_BEHIND_ATTEND (%#x) is known", args->layer,
                        args->flags, (unsigned)KT_APPEND_BEHIND_ATTEND);
    if ((status = settle_append(b, false)))
        return kt__within(status, "kt_append");

    kt_view *view = &b->views[args->layer]; // the layer's attend reads the same rows
    view->key = key.address;
    view->value = value.address;
    view->key_row = key.row;
    view->key_head = key.head;
    view->value_row = value.row;
    view->value_head = value.head;

    if (args->flags & KT_APPEND_BEHIND_ATTEND)
        b->deferred = true, b->deferred_layer = args->layer;
    else if ((status = launch_append(b, args->layer, false)))
        return kt__within(status, "kt_append: layer %d", args->layer);
    b->appended[args->layer] = true;
    return KT_OK;
}

static kt_status check_attend(const kt_batch *b, const kt_attend_args *args)
{
    if (args->window)
        return kt__fail(KT_UNSUPPORTED, "kt_attend: layer %d: window is %d; sliding windows are not supported yet, set it to 0",
                        args->layer, args->window);
    if (args->softcap != 0)
        return kt__fail(KT_UNSUPPORTED, "kt_attend: layer %d: softcap is %g; soft caps are not supported yet, set it to 0",
                        args->layer, (double)args->softcap);
    if (!isfinite(args->scale) || args->scale < 0)
        return kt__fail(KT_INVALID, "kt_attend: layer %d: scale is %g; it must be positive, or 0 for 1 / sqrt(%d)", args->layer,
                        (double)args->scale, b->cache->engine->package.formats[0].head_dim);
    if (args->flags & ~(unsigned)KT_ATTEND_REFERENCE)
        return kt__fail(KT_INVALID, "kt_attend: layer %d: flags is %#x; only KT_ATTEND_REFERENCE (%#x) is known", args->layer,
                        args->flags, (unsigned)KT_ATTEND_REFERENCE);
    if ((uintptr_t)args->lse % sizeof(float))
        return kt__fail(KT_INVALID, "kt_attend: layer %d: lse is at %p; it must be aligned to 4 bytes", args->layer,
                        (void *)args->lse);
    return KT_OK;
}

kt_status kt_attend(kt_batch *b, const kt_attend_args *args)
{
    kt_status status;
    if (!b || !args)
        return kt__fail(KT_INVALID, "kt_attend: %s is null", b ? "args" : "batch");
    if ((status = kt__check_size(args->size, sizeof *args, "kt_attend", "kt_attend_args")) ||
        (status = check_layer(b, "kt_attend", args->layer, true)) || (status = check_attend(b, args)))
        return status;
    operand query = {"query", args->query, args->query_row, args->query_head};
    operand out = {"out", args->out, args->out_row, args->out_head};
    if ((status = check_operand(b, "kt_attend", args->layer, &query, b->cache->q_heads)) ||
        (status = check_operand(b, "kt_attend", args->layer, &out, b->cache->q_heads)))
        return status;

    const kt_engine *engine = b->cache->engine;
    const double scale = args->scale != 0 ? (double)args->scale
                         : engine->package.scale > 0 ? engine->package.scale : 1 / sqrt(engine->package.formats[0].head_dim);
    const size_t d = (size_t)engine->package.formats[0].head_dim;
    const int format = kt__layer_format(&engine->package, args->layer);
    const kt__op op = args->flags & KT_ATTEND_REFERENCE ? KT__REFERENCE : KT__ATTEND;
    int kernel, blocks_per_sm;
    if ((status = kt__pick(engine, op, format, b->active, kt__power_above(b->max_pages), &kernel, &blocks_per_sm)))
        return kt__within(status, "kt_attend: layer %d", args->layer);
    const kt__kernel *chosen = &engine->package.kernels[kernel];
    int splits = 1, split_items = 1;
    if (op == KT__ATTEND && b->divided[format].kernel != chosen) {
        kt__divide(b, chosen, blocks_per_sm, &b->divided[format].splits, &b->divided[format].split_items);
        b->divided[format].kernel = chosen;
    }
    if (op == KT__ATTEND)
        splits = b->divided[format].splits, split_items = b->divided[format].split_items;
    kt_attend_params params = {
        .query = query.address, .out = (unsigned short *)args->out, .lse = args->lse,
        .query_row = query.row, .query_head = query.head, .out_row = out.row, .out_head = out.head,
        .partial = b->partial, .stats = b->partial + b->partial_floats / (d + 2) * d,
        .arrivals = b->arrivals, .scale = (float)scale, .splits = splits, .split_items = split_items, .ordered = b->ordered,
    };

    for (int i = 0; i < b->run_count && !status; i++) {
        const kt__run *run = &b->runs[i];
        if (!run->max_fresh)
            continue;
        kt__extent extent = extent_of(b, run);
        extent.ones[KT__PASSES] = chosen->passes > 0 ? chosen->passes : 1;
        extent.ones[KT__SPLITS] = splits;
        params.view = view_of(b, args->layer, run);
        params.max_fresh = run->max_fresh;
        status = launch(b, op, kernel, &extent, &params, sizeof params);
    }
    if (status || (status = settle_append(b, true)))
        return kt__within(status, "kt_attend: layer %d", args->layer);
    return KT_OK;
}

// ---- end -------------------------------------------------------------------------------------------------------------

static void close_step(kt_batch *b)
{
    for (int slot = 0; slot < b->slots; slot++)
        if (b->planned[slot].fresh)
            kt__batch_sequence(b, slot)->step = NULL;
    b->open = false;
}

void kt__step_drop(kt_batch *b)
{
    if (!b->captured) {
        // What the ring of a step in place held on from before the last step is overwritten.
        for (int slot = 0; slot < b->slots && b->written; slot++) {
            const kt_slot *p = &b->planned[slot];
            kt__sequence *s = p->fresh ? kt__batch_sequence(b, slot) : NULL;
            if (s && p->slab_next == p->slab && s->undo_slab == s->slab)
                s->undo_slab = -1;
        }
        kt__reserve_undo(b);
    }
    close_step(b);
}

// What the device's advance does, done to the host's state.
static void advance(kt_batch *b)
{
    for (int slot = 0; slot < b->slots; slot++) {
        kt_slot *p = &b->planned[slot];
        if (!p->fresh)
            continue;
        kt__sequence *s = kt__batch_sequence(b, slot);
        s->tokens += p->fresh;
        kt__sequence_move(b->cache, s, p->tokens, p->slab_next);
        b->uploaded[slot].tokens = s->tokens;
        b->uploaded[slot].slab = s->slab;
    }
    kt__reserve_settle(b);
}

kt_status kt_step_commit(kt_batch *b)
{
    kt_status status;
    if (!b)
        return kt__fail(KT_INVALID, "kt_step_commit: batch is null");
    if (!b->open)
        return kt__fail(KT_ORDER, "kt_step_commit: the batch has no open step");
    for (int layer = 0; layer < b->cache->layers; layer++)
        if (!b->appended[layer])
            return kt__fail(KT_ORDER, "kt_step_commit: layer %d was not appended; a step goes through all %d layers", layer,
                            b->cache->layers);
    kt__backend *backend = b->cache->engine->backend;
    if ((status = settle_append(b, false)) || (status = launch_step(b, KT__ADVANCE)))
        return kt__within(status, "kt_step_commit");
    if ((status = backend->calls->mirror(backend, b->mirror, b->control_device, sizeof *b->mirror, b->stream))) {
        b->uploaded_valid = false; // the device has advanced, the host has not
        return kt__within(status, "kt_step_commit");
    }
    if (b->captured)
        b->captured_rows = b->rows; // an earlier capture's at most: begin has refused more
    else
        advance(b);
    close_step(b);
    return KT_OK;
}

kt_status kt_step_abort(kt_batch *b)
{
    if (!b)
        return kt__fail(KT_INVALID, "kt_step_abort: batch is null");
    if (!b->open)
        return kt__fail(KT_ORDER, "kt_step_abort: the batch has no open step");
    const kt_status status = b->captured ? KT_OK : kt__batch_withdraw(b, b->stream);
    if (status)
        return kt__within(status, "kt_step_abort");
    kt__step_drop(b);
    return KT_OK;
}

// Whether the replays did what the host has planned for the slot: one token of the sequence as it is, in a row of every captured step.
static kt_status check_replayed(const kt_batch *b, int slot, long long row)
{
    const kt_slot *p = &b->uploaded[slot];
    const kt__entry *entry = &b->entries[slot];
    const kt__sequence *s = entry->fresh ? kt__batch_sequence(b, slot) : NULL;
    if (!b->uploaded_valid || !s || s->step || p->fresh != entry->fresh || p->row != row || p->tokens != s->tokens || p->slab != s->slab ||
        b->stamps[slot] != s->stamp)
        return kt__fail(KT_ORDER, "kt_step_replayed: slot %d has changed since kt_batch_upload; what was replayed is not what the host has",
                        slot);
    if (p->fresh > 1)
        return kt__fail(KT_ORDER, "kt_step_replayed: slot %d has fresh %d; a captured step brings at most one token per slot", slot, p->fresh);
    if (p->row >= b->captured_rows)
        return kt__fail(KT_ORDER, "kt_step_replayed: slot %d has row %d; a step of this batch was captured for rows 0 to %d", slot, p->row,
                        b->captured_rows - 1);
    return KT_OK;
}

kt_status kt_step_replayed(kt_batch *b, int count)
{
    kt_status status;
    if (!b)
        return kt__fail(KT_INVALID, "kt_step_replayed: batch is null");
    if (b->open)
        return kt__fail(KT_ORDER, "kt_step_replayed: the batch has an open step; commit or abort it first");
    if (!b->captured_rows)
        return kt__fail(KT_ORDER, "kt_step_replayed: no step of this batch was captured");
    if (count < 0)
        return kt__fail(KT_INVALID, "kt_step_replayed: count is %d; it cannot be negative", count);
    int fit = count, limit = -1;
    long long row = 0;
    for (int slot = 0; slot < b->slots; slot++) {
        const kt_slot *p = &b->uploaded[slot];
        const kt__entry *entry = &b->entries[slot];
        if ((p->fresh || entry->fresh) && (status = check_replayed(b, slot, entry->row < 0 ? row : entry->row))) {
            b->uploaded_valid = false; // whatever was replayed
            return status;
        }
        row += entry->fresh;
        if (p->fresh && p->capacity - p->tokens < fit) {
            fit = p->capacity - p->tokens;
            limit = slot;
        }
    }
    status = KT_OK;
    if (fit < count)
        status = kt__fail(KT_FULL, "kt_step_replayed: %d replays, but slot %d had room for %d (its reservation holds %d tokens); "
                          "the others changed nothing and are counted as overruns", count, limit, fit, b->uploaded[limit].capacity);
    for (int slot = 0; slot < b->slots; slot++) {
        kt_slot *p = &b->uploaded[slot];
        if (!p->fresh)
            continue;
        kt__sequence *s = kt__batch_sequence(b, slot);
        s->tokens = p->tokens += fit;
        if (fit)
            kt__sequence_move(b->cache, s, s->tokens - 1, s->slab); // each was in place
    }
    return status;
}

kt_status kt_poll(const kt_batch *b, kt_poll_info *info)
{
    kt_status status;
    if (!b || !info)
        return kt__fail(KT_INVALID, "kt_poll: %s is null", b ? "info" : "batch");
    if ((status = kt__check_size(info->size, sizeof *info, "kt_poll", "kt_poll_info")))
        return status;
    const volatile kt_control *mirror = b->mirror; // the device writes it
    info->overruns = mirror->overrun;
    info->nonfinite = mirror->nonfinite;
    return KT_OK;
}
