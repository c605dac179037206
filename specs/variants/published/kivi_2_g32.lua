-- KIVI-2 as its paper has it: keys by channel, values by token, groups of 32, the newest 128 tokens exact. arXiv 2402.02750.
return function(overrides)
    return kitty({
        variant = "kivi-2-g32",
        page = 128,
        sink = 0,
        key = { bits = 2, group = 32 },
        value = { bits = 2, group = 32, window = 128 },
    }, overrides)
end
