return require "lib"
