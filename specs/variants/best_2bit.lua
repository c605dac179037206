-- Kitty-Pro's bytes at less error: ranges of least squares for keys and values, and values rotated by a Hadamard matrix (QuaRot,
-- arXiv 2404.00456) where head_dim has one. Of the sweeps in specs/sweeps/ the least error at no more bytes: of attention's output on
-- captured keys and values 40 % less than Kitty-Pro on SmolLM2-135M, 30 and 32 % less on Gemma-3-270M.
return function(overrides)
    local head_dim = overrides and overrides.model and overrides.model.head_dim
    local power_of_two = not head_dim or head_dim & (head_dim - 1) == 0
    return kitty({
        variant = "best-2bit",
        page = 128,
        sink = 32,
        key = { bits = 2, group = "page", boost = { bits = 4, fraction = 0.25, score = "magnitude" }, range = "least_squares" },
        value = { bits = 2, group = "head", window = 128, range = "least_squares", rotation = power_of_two and "hadamard" or nil },
    }, overrides)
end
