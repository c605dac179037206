-- Llama-3.1-8B: https://huggingface.co/meta-llama/Llama-3.1-8B/blob/main/config.json
return {
    name = "llama3.1-8b",
    layers = 32,
    q_heads = 32,
    kv_heads = 8,
    head_dim = 128,
    dtype = "bf16",
}
