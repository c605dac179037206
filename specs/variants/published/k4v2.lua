-- More bits for keys than for values: 4 and 2. A pair of KVTuner, arXiv 2502.04420, with scales as KIVI has them.
return function(overrides)
    return kitty({
        variant = "k4v2",
        page = 128,
        sink = 0,
        key = { bits = 4, group = 32 },
        value = { bits = 2, group = 32, window = 128 },
    }, overrides)
end
