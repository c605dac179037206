-- Kitty-Pro: 2-bit keys with a quarter of the channels at 4 bits, 2-bit values.
return function(overrides)
    return kitty({
        variant = "kitty-pro",
        page = 128,
        sink = 32,
        key = { bits = 2, group = "page", boost = { bits = 4, fraction = 0.25, score = "magnitude" } },
        value = { bits = 2, group = "head", window = 128 },
    }, overrides)
end
