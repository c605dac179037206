return kitty {
    model = require "models.smollm2_135m",
    key = { bits = 2, range = "least_squares", boost = { bits = 4, fraction = 0.25 } },
    layers = {
        { first = 0, key = { bits = 4 } },
        { first = 1, key = { bits = 16, group = 32 } },
        { first = 2, key = { along = "channels" } },
        { first = 3, key = { window = 256 } },
        { first = 4, key = { rotation = "matrix" } },
        { first = 5, value = { bits = 16, range = "least_squares" } },
    },
}
