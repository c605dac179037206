-- Kitty-Pro with the first two and the last two layers exact: the layers at which vLLM's TurboQuant cache stays exact as well
-- (TurboQuantConfig.get_boundary_skip_layers). Kitty: arXiv 2511.18643.
return function(overrides)
    local count = overrides and overrides.model and overrides.model.layers or 4
    local function exact(first, last)
        return { first = first, last = last, key = { bits = 16 }, value = { bits = 16, window = 0 } }
    end
    return kitty({
        variant = "kitty-pro-boundary",
        page = 128,
        sink = 32,
        key = { bits = 2, group = "page", boost = { bits = 4, fraction = 0.25, score = "magnitude" } },
        value = { bits = 2, group = "head", window = 128 },
        layers = count > 4 and { exact(0, 1), exact(count - 2, count - 1) } or { exact(0, count - 1) },
    }, overrides)
end
