-- Qwen3-8B: https://huggingface.co/Qwen/Qwen3-8B/blob/main/config.json
return {
    name = "qwen3-8b",
    layers = 36,
    q_heads = 32,
    kv_heads = 8,
    head_dim = 128,
    dtype = "bf16",
}
