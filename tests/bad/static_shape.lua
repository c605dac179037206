return kitty {
    model = require "models.qwen3_8b",
    calibration = "lists.safetensors",
    key = { boost = { fraction = 0.25, score = "static" } },
}
