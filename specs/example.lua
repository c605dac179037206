-- A spec, and how to write one. `kittygen check example.lua` shows what it costs; `kittygen check --fields` lists every
-- field with what it takes and its default.
--
-- A spec joins the facts of a model and a way of quantising its KV cache. The shipped ones of each compose in one line:
--
--     return require "variants.kitty_pro" { model = require "models.qwen3_8b" }
--
-- and what is given beside the model goes over the variant's own fields:
--
--     return require "variants.kitty_pro" { model = require "models.qwen3_8b", variant = "kitty-pro-64", page = 64 }
--
-- `require "a.b"` reads a/b.lua from this file's folder, else from the shipped specs. Below is the same variant in full.

local model = require "models.qwen3_8b" -- or a table: name, layers, q_heads, kv_heads, head_dim, dtype, scale

return kitty {
    model = model,
    variant = "example", -- the package is named MODEL.VARIANT

    page = 128, -- tokens quantised together
    sink = 32,  -- first tokens of a sequence, kept exact

    key = {
        bits = 2,
        group = "page", -- tokens of a page that share a channel's scale and zero; or 32, 64, 128
        window = 0,     -- newest tokens kept exact, on top of the unfinished page
        along = "tokens",   -- a channel has scales of its own; "channels": a token has
        range = "extremes", -- a group's codes span it whole; "least_squares": the part of it with the least error
        rotation = "none",  -- or "hadamard", or "matrix" with a calibration
        boost = {       -- the channels that score highest in a page get more bits; boost = false: none
            bits = 4,
            fraction = 0.25,
            score = "magnitude", -- or "variance", "range", "random" with a seed, "static" with a calibration
        },
    },

    value = {
        bits = 2,
        group = "head", -- channels that share a token's scale and zero; or 32, 64, 128
        window = 128,
    },

    -- Layers that differ, counted from 0; what is not given is as above:
    -- layers = { { first = 0, last = 1, key = { bits = 16 }, value = { bits = 16 } }, { first = 9, key = { boost = { fraction = 0.5 } } } },
}
