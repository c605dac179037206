-- kittygen explore specs/sweeps/smollm2.lua --kv tests/data/smollm2.safetensors -o report.html
return require "sweeps.wide" (require "models.smollm2_135m")
