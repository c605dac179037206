-- How to spend bits, once ranges are of least squares and values are rotated (sweeps/wide.lua shows what that gains): key bits with a share of
-- the channels boosted, against value bits. A function of the model, 37 variants with Kitty-Pro; "k2p25b4-v1" is keys of 2 bits, 25 % of
-- their channels at 4, and values of 1 bit.

return function(model)
    local keys = { -- bits, share boosted, to bits
        { 1, 25, 4 }, { 2 }, { 2, 25, 3 }, { 2, 25, 4 }, { 2, 50, 3 }, { 2, 50, 4 }, { 3 }, { 3, 25, 4 }, { 4 },
    }
    local sweep = { require "variants.kitty_pro" { model = model } }
    -- A Hadamard matrix has 2^n rows.
    local rotation = model.head_dim ~= 96 and model.head_dim ~= 192 and "hadamard" or "none"
    for value = 1, 4 do
        for _, key in ipairs(keys) do
            local bits, percent, to = key[1], key[2], key[3]
            table.insert(sweep, kitty {
                model = model,
                variant = string.format(percent and "k%dp%db%d-v%d" or "k%d-v%d", bits, percent or value, to, value),
                key = { bits = bits, range = "least_squares", boost = percent and { bits = to, fraction = percent / 100 } },
                -- From 3 bits on rotated values are spread so evenly that their extremes serve as well.
                value = { bits = value, range = value <= 2 and "least_squares" or "extremes", rotation = rotation },
            })
        end
    end
    return sweep
end
