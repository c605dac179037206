-- The same with 2 bits, first and newest tokens exact. arXiv 2404.00456.
return function(overrides)
    return kitty({
        variant = "hadamard-2",
        page = 128,
        sink = 32,
        key = { bits = 2, along = "channels", group = "head", rotation = "hadamard", range = "least_squares" },
        value = { bits = 2, along = "channels", group = "head", rotation = "hadamard", range = "least_squares", window = 128 },
    }, overrides)
end
