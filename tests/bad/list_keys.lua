local k = require "variants.kitty"
local m = require "models.smollm2_135m"
return { k { model = m }, x = k { model = m, variant = "named" } }
