-- A sweep: a file may return a list of specs. Each needs a name of its own, here through `variant`.

local model = require "models.qwen3_8b"
local sweep = {}

for _, percent in ipairs { 0, 12.5, 25, 50 } do
    for _, score in ipairs { "magnitude", "variance" } do
        table.insert(sweep, require "variants.kitty_pro" {
            model = model,
            variant = string.format("boost-%g-%s", percent, score),
            key = { boost = { fraction = percent / 100, score = score } },
        })
    end
end

return sweep
