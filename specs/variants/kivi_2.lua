-- KIVI-2: 2-bit keys and values, no boost, no sinks.
return function(overrides)
    return kitty({
        variant = "kivi-2",
        page = 128,
        sink = 0,
        key = { bits = 2, group = "page" },
        value = { bits = 2, group = "head", window = 128 },
    }, overrides)
end
