-- Llama-3.3-70B-Instruct: https://huggingface.co/meta-llama/Llama-3.3-70B-Instruct/blob/main/config.json
return {
    name = "llama3.3-70b",
    layers = 80,
    q_heads = 64,
    kv_heads = 8,
    head_dim = 128,
    dtype = "bf16",
}
