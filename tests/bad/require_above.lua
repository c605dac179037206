return require "..page"
