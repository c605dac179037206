return kitty {
    model = require "models.qwen3_8b",
    key = { rotation = "matrix" },
}
