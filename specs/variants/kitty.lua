-- Kitty: 2-bit keys with an eighth of the channels at 4 bits, 2-bit values.
return function(overrides)
    return kitty({
        variant = "kitty",
        page = 128,
        sink = 32,
        key = { bits = 2, group = "page", boost = { bits = 4, fraction = 0.125, score = "magnitude" } },
        value = { bits = 2, group = "head", window = 128 },
    }, overrides)
end
