-- 4-bit keys and values, no boost.
return function(overrides)
    return kitty({
        variant = "int4",
        page = 128,
        sink = 32,
        key = { bits = 4, group = "page" },
        value = { bits = 4, group = "head", window = 128 },
    }, overrides)
end
