-- Keys and values rotated by Hadamard, then 4 bits in groups of a token and head, as QuaRot has its cache. arXiv 2404.00456. Where that
-- clips every range by one factor, each group here takes the range of least squares. head_dim a power of two.
return function(overrides)
    return kitty({
        variant = "hadamard-4",
        page = 128,
        sink = 0,
        key = { bits = 4, along = "channels", group = "head", rotation = "hadamard", range = "least_squares" },
        value = { bits = 4, along = "channels", group = "head", rotation = "hadamard", range = "least_squares", window = 0 },
    }, overrides)
end
