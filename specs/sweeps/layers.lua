-- Which layers repay more bytes: Kitty-Pro with a quarter of the layers kept better, each quarter in turn. A function of the model, 17 variants;
-- "q1-k4" is the first quarter with keys of 4 bits, "q2-k50" the second with half of the key channels boosted, "q4-exact" the last one exact.
-- Errors are means of the captured layers, which should be as many of each quarter.

return function(model)
    local pro, sweep, count = require "variants.kitty_pro", {}, model.layers
    local exact = { key = { bits = 16 }, value = { bits = 16, window = 0 } }
    local ways = { -- name, what differs
        { "k4", { key = { bits = 4, boost = false } } },
        { "k50", { key = { boost = { fraction = 0.5 } } } },
        { "v4", { value = { bits = 4 } } },
        { "exact", exact },
    }
    local function range(first, last, way) return { first = first, last = last, key = way.key, value = way.value } end

    table.insert(sweep, pro { model = model })
    for quarter = 0, 3 do
        local first, next = quarter * count // 4, (quarter + 1) * count // 4
        for _, way in ipairs(first < next and ways or {}) do
            table.insert(sweep, pro { model = model, variant = string.format("q%d-%s", quarter + 1, way[1]), layers = { range(first, next - 1, way[2]) } })
        end
    end
    return sweep
end
