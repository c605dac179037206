-- KIVI*-2: KIVI-2 with the first tokens kept exact.
return function(overrides)
    return kitty({
        variant = "kivi-2-sink",
        page = 128,
        sink = 32,
        key = { bits = 2, group = "page" },
        value = { bits = 2, group = "head", window = 128 },
    }, overrides)
end
