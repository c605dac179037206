return kitty {
    model = require "models.qwen3_8b",
    key = { bits = 16, metadata = "fp8" },
    value = { bits = 16, metadata = "fp8" },
}
