return kitty {
    model = { name = "m", scale = 1e-50, layers = 2, q_heads = 8, kv_heads = 2, head_dim = 128, dtype = "fp16" },
}
