-- SmolLM2-135M-Instruct: https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct/blob/main/config.json
-- The config says bfloat16; it is served in fp16, as its GGUF files are.
return {
    name = "smollm2-135m",
    layers = 30,
    q_heads = 9,
    kv_heads = 3,
    head_dim = 64,
    dtype = "fp16",
}
