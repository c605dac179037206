return kitty {
    model = require "models.qwen3_8b",
    key = { boost = { fraction = 0.25, score = "static" } },
}
