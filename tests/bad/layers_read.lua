local m = require "models.smollm2_135m"
return kitty {
    model = m,
    layers = {
        { first = 0, last = 1, key = { bits = 4 } },
        { first = 1, last = 2, value = { bits = 5 } },
        { first = 28, last = 40, key = { bits = 4 } },
        { first = 3, page = 64, sink = 0, keys = { bits = 4 }, key = { boost = { fraction = 2 } } },
        { first = 5, last = 4, value = { windov = 32 } },
        { first = 9 },
        { key = { bits = 3 } },
    },
}
