local k = require "variants.kitty"
local m = require "models.smollm2_135m"
return { k { model = m }, [4] = k { model = m, variant = "after-a-hole" } }
