-- Gemma 3 270M: https://huggingface.co/google/gemma-3-270m/blob/main/config.json
-- Every sixth layer has full attention, the others a sliding window of 512. All 18 are counted here; which layers a cache
-- really has is said at run time.
return {
    name = "gemma3-270m",
    layers = 18,
    q_heads = 4,
    kv_heads = 1,
    head_dim = 256,
    dtype = "bf16",
    scale = 0.0625, -- 1 / sqrt(query_pre_attn_scalar), 256
}
