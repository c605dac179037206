local model = { name = "tiny", layers = 1, q_heads = 2, kv_heads = 2, head_dim = 64, dtype = "fp16" }
return kitty {
    model = model,
    calibration = "lists.safetensors",
    value = { rotation = "matrix" },
}
