-- KIVI-4 as its paper has it: the same with 4 bits. arXiv 2402.02750.
return function(overrides)
    return kitty({
        variant = "kivi-4",
        page = 128,
        sink = 0,
        key = { bits = 4, group = 32 },
        value = { bits = 4, group = 32, window = 128 },
    }, overrides)
end
