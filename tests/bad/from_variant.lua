return require "variants.kitty_pro" {
    model = require "models.qwen3_8b",
    key = { boost = { fraction = 7 } },
}
