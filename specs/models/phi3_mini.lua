-- Phi-3-mini-4k-instruct: https://huggingface.co/microsoft/Phi-3-mini-4k-instruct/blob/main/config.json
return {
    name = "phi3-mini",
    layers = 32,
    q_heads = 32,
    kv_heads = 32,
    head_dim = 96,
    dtype = "bf16",
}
