-- Small and uneven shapes: every head_dim, kind of score, width and grouping, both types, 1 to 16 query heads per KV head, sinks and
-- windows that tiles do not divide.
local function shape(name, model, key, value, more)
    local spec = {
        name = name,
        model = { name = name, layers = 2, q_heads = 2 * model[2], kv_heads = 2, head_dim = model[1], dtype = model[3] },
        variant = "shape",
        page = 64,
        sink = 32,
        key = key,
        value = value,
    }
    for field, given in pairs(more or {}) do
        spec[field] = given
    end
    return kitty(spec)
end

return {
    shape("d64-g1-kitty", { 64, 1, "fp16" }, { bits = 2, boost = { bits = 4, fraction = 0.125 } }, { bits = 2, window = 100 }, { sink = 4 }),
    shape("d96-g3-kitty", { 96, 3, "fp16" }, { bits = 2, boost = { bits = 4, fraction = 0.25, score = "variance" } },
        { bits = 2, window = 1 }, { sink = 1 }),
    shape("d128-g4-pro-bf16", { 128, 4, "bf16" }, { bits = 2, boost = { bits = 4, fraction = 0.25 } }, { bits = 2, window = 32 }),
    shape("d128-g7-range", { 128, 7, "fp16" }, { bits = 2, boost = { bits = 8, fraction = 0.1, score = "range" } },
        { bits = 4, group = 64, window = 32 }, { sink = 0 }),
    shape("d192-g5-random", { 192, 5, "fp16" },
        { bits = 4, group = 32, boost = { bits = 8, fraction = 0.03, score = "random", seed = 7 } }, { bits = 8, group = 64, window = 0 }, { sink = 33 }),
    shape("d256-g2-kivi", { 256, 2, "bf16" }, { bits = 2, group = 32, window = 5 }, { bits = 2, window = 127 }, { sink = 31 }),
    shape("d64-g16-int8", { 64, 16, "fp16" }, { bits = 8, window = 33 }, { bits = 8, group = 32, window = 97 }, { sink = 17 }),
    shape("d64-g8-exact", { 64, 8, "fp16" }, { bits = 16 }, { bits = 16, window = 0 }, { sink = 0 }),
    shape("d128-g4-exact-bf16", { 128, 4, "bf16" }, { bits = 16, window = 129 }, { bits = 4, window = 129 }, { sink = 100 }),
    shape("d64-g12-values", { 64, 12, "bf16" }, { bits = 4, boost = { bits = 8, fraction = 0.25 } }, { bits = 16, window = 32 }),
    shape("d96-g6-page128", { 96, 6, "fp16" }, { bits = 2, group = 64, boost = { bits = 4, fraction = 0.5 } }, { bits = 2, group = 32, window = 64 },
        { page = 128 }),
    shape("d64-g4-static", { 64, 4, "bf16" },
        { bits = 1, group = 32, range = "least_squares", metadata = "fp8", boost = { bits = 4, fraction = 0.25, score = "static" } },
        { bits = 1, along = "tokens", range = "least_squares", window = 32 }, { calibration = "calibration.safetensors" }),
    shape("d64-g6-matrix", { 64, 6, "fp16" }, { bits = 2, rotation = "matrix", boost = { bits = 3, fraction = 0.4 } },
        { bits = 3, group = 32, rotation = "matrix", metadata = "fp8", window = 0 }, { calibration = "calibration.safetensors", sink = 0 }),
    shape("d64-g3-hadamard", { 64, 3, "bf16" }, { bits = 3, along = "channels", group = 32, rotation = "hadamard" },
        { bits = 2, rotation = "hadamard", range = "least_squares", window = 32 }),
    -- More than 8 heads: 1-bit planes and a rotation; several q' of a chunk.
    shape("d64-g11-odd", { 64, 11, "fp16" }, { bits = 3, group = 128, rotation = "hadamard", metadata = "fp8", boost = { bits = 4, fraction = 0.3 } },
        { bits = 3, metadata = "fp8", window = 70 }, { page = 256, sink = 100 }),
    shape("d64-g9-groups", { 64, 9, "fp16" }, { bits = 2, group = 32, boost = { bits = 8, fraction = 0.1 } }, { bits = 4, window = 0 }),
    -- Every other kind of keys and values too.
    shape("d128-g16-pro", { 128, 16, "fp16" }, { bits = 2, boost = { bits = 4, fraction = 0.25 } }, { bits = 2, window = 128 }, { page = 128 }),
    shape("d96-g9-kitty-bf16", { 96, 9, "bf16" }, { bits = 2, boost = { bits = 4, fraction = 0.25 } }, { bits = 2, window = 32 }, { sink = 7 }),
    shape("d64-g13-exact-bf16", { 64, 13, "bf16" }, { bits = 16 }, { bits = 16, window = 0 }, { sink = 0 }),
    shape("d128-g10-across", { 128, 10, "fp16" }, { bits = 4, along = "channels", group = 64 },
        { bits = 2, along = "tokens", group = 32, window = 40 }, { page = 128 }),
    shape("d64-g15-across-odd", { 64, 15, "bf16" }, { bits = 3, along = "channels", group = 32, metadata = "fp8", rotation = "hadamard" },
        { bits = 3, along = "tokens", metadata = "fp8", rotation = "hadamard", window = 7 }, { sink = 15 }),
    shape("d64-g14-matrix", { 64, 14, "fp16" }, { bits = 1, rotation = "matrix", boost = { bits = 3, fraction = 0.4 } },
        { bits = 3, group = 32, rotation = "matrix", metadata = "fp8", window = 0 }, { calibration = "calibration.safetensors", sink = 0 }),
    -- The first layer as the first shape has them.
    shape("d64-g1-layers", { 64, 1, "fp16" }, { bits = 2, boost = { bits = 4, fraction = 0.125 } }, { bits = 2, window = 32 },
        { layers = { { first = 1, key = { bits = 4, boost = false, window = 32 }, value = { bits = 16, window = 160 } } } }),
    shape("d64-g5-across", { 64, 5, "fp16" }, { bits = 4, along = "channels", metadata = "fp8" },
        { bits = 4, along = "tokens", group = 32, metadata = "fp8", window = 7 }, { sink = 15 }),
}
