return kitty {
    model = require "models.qwen3_8b",
    calibration = "no_such.safetensors",
    key = { boost = { fraction = 0.25, score = "static" } },
}
