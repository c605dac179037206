return kitty {
    model = { name = "m", layers = 2, q_heads = 8, kv_heads = 2, head_dim = 128, dtype = "fp16" },
    sink = -1,
}
