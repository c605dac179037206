-- Qwen3-0.6B: https://huggingface.co/Qwen/Qwen3-0.6B/blob/main/config.json
return {
    name = "qwen3-0.6b",
    layers = 28,
    q_heads = 16,
    kv_heads = 8,
    head_dim = 128,
    dtype = "bf16",
}
