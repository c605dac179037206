return kitty {
    model = require "models.qwen3_8b",
    calibration = "../data/smollm2.safetensors",
    key = { boost = { fraction = 0.25, score = "static" } },
}
