return kitty {
    model = require "models.qwen3_8b",
    value = { bits = 16, along = "tokens" },
}
