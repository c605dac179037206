return require "lib.nothing"
