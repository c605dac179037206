#include "recorder.h"
#include "suite.h"

#include <string.h>

enum { RECORDS = 64 };

typedef struct {
    int kernel;
    kt__extent extent;
    _Alignas(16) unsigned char params[512];
    size_t bytes;
    void *host; // of a mirror
    const void *device;
} record;

recorder_state recorder;
static const kt__backend_calls *real;
static kt__backend_calls calls;
static record records[RECORDS];

// Counts down to a call that fails.
static bool fails_now(void) { return recorder.until_failure-- == 0; }

static kt_status capturing(kt__backend *backend, void *stream, bool *yes)
{
    (void)backend, (void)stream;
    *yes = recorder.capturing;
    return KT_OK;
}

static kt_status launch(kt__backend *backend, int kernel, const kt__extent *extent, const void *params, size_t bytes, void *stream)
{
    const kt__op op = backend->package->kernels[kernel].op;
    if (fails_now())
        return kt__fail(KT_DEVICE, "launch refused");
    if (op == KT__APPEND || op == KT__ATTEND)
        recorder.places += (long long)extent->ones[KT__SLOTS] * extent->ones[KT__FRESH];
    if (op == KT__ATTEND) {
        const kt_attend_params *p = params;
        recorder.attend = (recorder_attend){kernel, p->splits, p->split_items, p->max_fresh, *extent};
    }
    if (!recorder.capturing)
        return real->launch(backend, kernel, extent, params, bytes, stream);
    record *r = &records[recorder.count++];
    ck_assert(recorder.count <= RECORDS && bytes <= sizeof r->params);
    *r = (record){.kernel = kernel, .extent = *extent, .bytes = bytes};
    memcpy(r->params, params, bytes);
    return KT_OK;
}

static kt_status upload(kt__backend *backend, const kt__copy *copies, int count, void *stream)
{
    ck_assert(!recorder.capturing);
    recorder.copies += count;
    return fails_now() ? kt__fail(KT_DEVICE, "upload refused") : real->upload(backend, copies, count, stream);
}

static kt_status copy(kt__backend *backend, void *to, const void *from, size_t bytes, int count, size_t stride, void *stream)
{
    ck_assert(!recorder.capturing);
    return fails_now() ? kt__fail(KT_DEVICE, "copy refused") : real->copy(backend, to, from, bytes, count, stride, stream);
}

static kt_status mirror(kt__backend *backend, void *host, const void *device, size_t bytes, void *stream)
{
    if (fails_now())
        return kt__fail(KT_DEVICE, "mirror refused");
    if (!recorder.capturing)
        return real->mirror(backend, host, device, bytes, stream);
    records[recorder.count++] = (record){.bytes = bytes, .host = host, .device = device};
    return KT_OK;
}

void recorder_install(ref_world *world)
{
    real = world->engine->backend->calls;
    calls = *real;
    calls.capturing = capturing;
    calls.launch = launch;
    calls.upload = upload;
    calls.copy = copy;
    calls.mirror = mirror;
    world->engine->backend->calls = &calls;
    recorder = (recorder_state){.until_failure = -1};
}

void recorder_capture(const ref_world *world, kt_batch *batch, const ref_buffers *buffers)
{
    OK(kt_batch_upload(batch, NULL));
    recorder.capturing = true;
    OK(kt_step_begin(batch, NULL));
    for (int layer = 0; layer < world->spec.model.layers; layer++) {
        OK(ref_append(world, batch, layer, buffers));
        OK(ref_attend_layer(world, batch, layer, buffers));
    }
    OK(kt_step_commit(batch));
    recorder.capturing = false;
}

void recorder_replay(const ref_world *world)
{
    kt__backend *backend = world->engine->backend;
    for (int i = 0; i < recorder.count; i++) {
        const record *r = &records[i];
        const kt_status status = r->host ? real->mirror(backend, r->host, r->device, r->bytes, NULL)
                                         : real->launch(backend, r->kernel, &r->extent, r->params, r->bytes, NULL);
        ck_assert_msg(!status, "%s", kt_message());
    }
}

void recorder_refill(const ref_world *world, const ref_buffers *b, ref_sequence *const *sequences, int count)
{
    const size_t key = (size_t)(world->kv_heads * world->format.head_dim), query = (size_t)(world->q_heads * world->format.head_dim);
    for (int layer = 0; layer < world->spec.model.layers; layer++)
        for (int i = 0, row = 0; i < count; i++) {
            if (!sequences[i])
                continue;
            const size_t to = (size_t)(layer * b->rows + row++);
            const size_t from = (size_t)(layer * REF_STREAM + ref_index(sequences[i], sequences[i]->tokens));
            memcpy(b->query + to * query, world->query + from * query, query * 2);
            memcpy(b->key + to * key, world->key + from * key, key * 2);
            memcpy(b->value + to * key, world->value + from * key, key * 2);
        }
}
