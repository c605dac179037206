local m = require "models.smollm2_135m"
return {
    kitty { model = m, variant = "a", layers = 2 },
    kitty { model = m, variant = "b", layers = { first = 0, key = { bits = 16 } } },
    kitty { model = m, variant = "c", layers = { 7, { first = 1, key = 16 } } },
    kitty { model = m, variant = "d", layers = { { first = -1, value = { bits = 16 } }, { first = 1.5, 3, value = { bits = 16 } } } },
}
