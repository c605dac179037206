-- Kitty-Pro with boosted channels that are chosen once, from a calibration, instead of in every page. Kitty: arXiv 2511.18643.
--     require "variants.published.kitty_static" { model = ..., calibration = "qwen3-8b.safetensors" }
return function(overrides)
    return kitty({
        variant = "kitty-static",
        page = 128,
        sink = 32,
        key = { bits = 2, group = "page", boost = { bits = 4, fraction = 0.25, score = "static" } },
        value = { bits = 2, group = "head", window = 128 },
    }, overrides)
end
