-- Qwen3-32B: https://huggingface.co/Qwen/Qwen3-32B/blob/main/config.json
return {
    name = "qwen3-32b",
    layers = 64,
    q_heads = 64,
    kv_heads = 8,
    head_dim = 128,
    dtype = "bf16",
}
