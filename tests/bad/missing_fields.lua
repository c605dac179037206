return kitty {
    model = {
        name = "m",
        q_heads = 8,
        kv_heads = 2,
    },
}
