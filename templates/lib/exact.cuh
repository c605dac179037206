// Where a slot's exact tokens are: those before the step in its slab, the step's own in the input.
struct Exact {
    const kt_view *view;
    const u8 *slab;
    int before, fresh_row, head; // tokens before the step; row of the first fresh token

    __device__ __forceinline__ const u16 *key(int token) const {
        if (token >= before)
            return view->key + (long long)(fresh_row + token - before) * view->key_row + head * view->key_head;
        if (token < SINK) return (const u16 *)slab + token * HEAD_DIM;
        return (const u16 *)(slab + SLAB_KEY) + (token - SINK) % KEY_RING * HEAD_DIM;
    }
    __device__ __forceinline__ const u16 *value(int token) const {
        if (token >= before)
            return view->value + (long long)(fresh_row + token - before) * view->value_row + head * view->value_head;
        if (token < SINK) return (const u16 *)(slab + SLAB_SINK_VALUE) + token * HEAD_DIM;
        return (const u16 *)(slab + SLAB_VALUE) + (token - SINK) % VALUE_RING * HEAD_DIM;
    }
    __device__ __forceinline__ const u16 *row(bool keys, int token) const { return keys ? key(token) : value(token); }
};

__device__ __forceinline__ Exact exact_of(const kt_view &view, const kt_slot &slot, int head) {
    Exact exact;
    exact.view = &view;
    exact.slab = view.slabs + ((long long)slot.slab * view.kv_heads + head) * SLAB_BYTES;
    exact.before = slot.tokens, exact.fresh_row = slot.row, exact.head = head;
    return exact;
}
