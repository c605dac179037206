-- 4 bits in groups of 64 channels of a token, for keys and values, as FlexGen compresses its cache. arXiv 2303.06865.
return function(overrides)
    return kitty({
        variant = "int4-token",
        page = 128,
        sink = 0,
        key = { bits = 4, along = "channels", group = 64 },
        value = { bits = 4, along = "channels", group = 64, window = 0 },
    }, overrides)
end
