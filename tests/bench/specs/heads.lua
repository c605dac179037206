-- kitty-pro of head sizes and groups of query heads that the shipped models lack, with 8 KV heads: for kittygen bench and tune.
local list = {}
for _, shape in ipairs { { 64, 4 }, { 256, 4 }, { 128, 1 }, { 128, 16 } } do
    local head_dim, group = shape[1], shape[2]
    table.insert(list, require "variants.kitty_pro" {
        model = {
            name = string.format("d%d-g%d", head_dim, group),
            layers = 36,
            q_heads = 8 * group,
            kv_heads = 8,
            head_dim = head_dim,
            dtype = "fp16",
        },
    })
end
return list
