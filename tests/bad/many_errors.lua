return kitty {
    model = { name = "m", layers = 2, q_heads = 8, kv_heads = 2, head_dim = 128, dtype = "fp16" },
    page = 1,
    sink = -1,
    key = { bits = 1, group = 1, window = -1, boost = { bits = 1, fraction = 2, score = "x", seed = -1 } },
    value = { bits = 1, group = 1, window = 4097 },
}
