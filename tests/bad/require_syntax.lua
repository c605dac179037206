return require "lib.syntax"
