return require "variants.kitty"
