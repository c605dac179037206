-- What is worth comparing on any model, about 70 variants for kittygen explore: a function of the model.
--
-- Names say what differs from Kitty-Pro's 2-bit keys and values, pages of 128 tokens and 32 sinks: the score and the share of the boosted
-- channels, their bits if not 4 (b8), tokens of a key group (g32), bits and channels of a value group (v4, v2g32), ranges of least squares of
-- keys and values (kls, vls), Hadamard rotation of keys and values (kh, vh), and others in full.

local pro = require "variants.kitty_pro"

return function(model)
    local sweep = {}
    local function add(spec) table.insert(sweep, spec) end
    local function boosted(name, score, percent, bits, group, value)
        add(pro { model = model, variant = string.format("%s-%g%s", score, percent, name),
            key = { group = group, boost = { bits = bits, fraction = percent / 100, score = score } }, value = value })
    end

    for _, variant in ipairs { "fp16", "int4", "kivi_2_sink", "kitty", "kitty_pro" } do
        add(require("variants." .. variant) { model = model })
    end

    -- Which channels, how many, and in groups of how many tokens.
    for _, score in ipairs { "magnitude", "variance", "range" } do
        for _, percent in ipairs { 12.5, 25, 37.5, 50 } do
            if score ~= "magnitude" or percent > 25 then -- the others are Kitty and Kitty-Pro
                boosted("", score, percent, 4, "page")
            end
            boosted("-g32", score, percent, 4, 32)
        end
    end
    boosted("", "random", 25, 4, "page")
    for _, score in ipairs { "magnitude", "range" } do
        for _, percent in ipairs { 6.25, 12.5, 25 } do
            boosted("-b8", score, percent, 8, "page")
        end
    end

    -- What codes span, and rotation; at no bytes more.
    local ways = { -- name, keys, values
        { "kls", { range = "least_squares" } },
        { "vls", {}, { range = "least_squares" } },
        { "kls-vls", { range = "least_squares" }, { range = "least_squares" } },
    }
    if model.head_dim ~= 96 and model.head_dim ~= 192 then -- a Hadamard matrix has 2^n rows
        table.insert(ways, { "vh", {}, { rotation = "hadamard" } })
        table.insert(ways, { "kh-vh", { rotation = "hadamard" }, { rotation = "hadamard" } })
        table.insert(ways, { "kls-vh", { range = "least_squares" }, { rotation = "hadamard" } })
        table.insert(ways, { "kls-vls-vh", { range = "least_squares" }, { range = "least_squares", rotation = "hadamard" } })
    end
    for name, variant in pairs { ["kivi-2-sink"] = "kivi_2_sink", kitty = "kitty", ["kitty-pro"] = "kitty_pro" } do
        for _, way in ipairs(ways) do
            add(require("variants." .. variant) { model = model, variant = name .. "-" .. way[1], key = way[2], value = way[3] })
        end
    end

    -- Where more bits pay: in values, or in all channels of the keys.
    for _, percent in ipairs { 12.5, 25 } do
        boosted("-v4", "range", percent, 4, "page", { bits = 4 })
        boosted("-v4g32", "range", percent, 4, "page", { bits = 4, group = 32 })
        boosted("-v2g32", "range", percent, 4, "page", { bits = 2, group = 32 })
        boosted("-g32-v4", "range", percent, 4, 32, { bits = 4 })
        boosted("-g32-v2g32", "range", percent, 4, 32, { bits = 2, group = 32 })
    end
    for _, value in ipairs { { bits = 2 }, { bits = 2, group = 32 }, { bits = 8 } } do
        add(require "variants.int4" { model = model, variant = string.format("k4-v%d%s", value.bits, value.group and "g32" or ""), value = value })
    end
    add(pro { model = model, variant = "k4-range-12.5-b8-v2", key = { bits = 4, boost = { bits = 8, fraction = 0.125, score = "range" } } })
    add(require "variants.int4" { model = model, variant = "k8-v4", key = { bits = 8 } })
    add(require "variants.int4" { model = model, variant = "int8", key = { bits = 8 }, value = { bits = 8 } })

    -- Pages, sinks and windows: what is exact costs bytes too.
    for _, page in ipairs { 64, 256 } do
        add(pro { model = model, variant = string.format("kitty-pro-page-%d", page), page = page })
        add(pro { model = model, variant = string.format("range-25-page-%d", page), page = page, key = { boost = { score = "range" } } })
    end
    for _, sink in ipairs { 0, 64, 128 } do
        add(pro { model = model, variant = string.format("kitty-pro-sink-%d", sink), sink = sink })
    end
    for _, window in ipairs { 0, 64, 256 } do
        add(pro { model = model, variant = string.format("kitty-pro-window-%d", window), value = { window = window } })
    end
    add(pro { model = model, variant = "kitty-pro-windows-128", key = { window = 128 } })
    return sweep
end
