-- kittygen explore specs/sweeps/smollm2_layers.lua --kv tests/data/smollm2.safetensors -o report.html
return require "sweeps.layers" (require "models.smollm2_135m")
