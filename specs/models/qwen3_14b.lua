-- Qwen3-14B: https://huggingface.co/Qwen/Qwen3-14B/blob/main/config.json
return {
    name = "qwen3-14b",
    layers = 40,
    q_heads = 40,
    kv_heads = 8,
    head_dim = 128,
    dtype = "bf16",
}
