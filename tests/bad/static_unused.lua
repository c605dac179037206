return kitty {
    model = require "models.qwen3_8b",
    calibration = "lists.safetensors",
}
