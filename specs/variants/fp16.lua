-- Nothing is quantised: pages hold the 16-bit elements.
return function(overrides)
    return kitty({
        variant = "fp16",
        page = 128,
        sink = 0,
        key = { bits = 16 },
        value = { bits = 16, window = 0 },
    }, overrides)
end
