return require "lib.bytecode"
