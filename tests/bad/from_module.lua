return kitty { model = require "lib.bad_model" }
