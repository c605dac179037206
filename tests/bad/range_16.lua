return kitty {
    model = require "models.qwen3_8b",
    key = { bits = 16, range = "least_squares" },
    value = { bits = 16, range = "least_squares" },
}
