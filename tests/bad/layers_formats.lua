local layers = {}
for i = 0, 8 do
    layers[i + 1] = { first = i, key = { boost = { fraction = (i + 1) / 16 } } }
end
return kitty { model = require "models.smollm2_135m", layers = layers }
