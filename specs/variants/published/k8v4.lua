-- More bits for keys than for values: 8 and 4. A pair of KVTuner, arXiv 2502.04420, with scales of tokens.
return function(overrides)
    return kitty({
        variant = "k8v4",
        page = 128,
        sink = 0,
        key = { bits = 8, along = "channels", group = "head" },
        value = { bits = 4, along = "channels", group = "head", window = 0 },
    }, overrides)
end
