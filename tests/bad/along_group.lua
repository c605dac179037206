return kitty {
    model = require "models.phi3_mini",
    key = { along = "channels", group = 64 },
    value = { along = "tokens", group = "head" },
}
