return { other = require "lib.cycle_a" }
