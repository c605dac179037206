return kitty {
    model = require "models.phi3_mini",
    key = { rotation = "hadamard" },
    value = { bits = 16, rotation = "hadamard" },
}
