return kitty {
    model = require "models.qwen3_8b",
    key = { along = "channels", boost = { fraction = 0.25 } },
}
