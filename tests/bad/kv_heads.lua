return kitty {
    model = { name = "m", layers = 2, q_heads = 8, kv_heads = 2048, head_dim = 128, dtype = "fp16" },
}
