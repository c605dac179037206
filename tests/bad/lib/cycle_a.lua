return { other = require "lib.cycle_b" }
