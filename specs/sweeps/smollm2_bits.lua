-- kittygen explore specs/sweeps/smollm2_bits.lua --kv tests/data/smollm2.safetensors -o report.html
return require "sweeps.bits" (require "models.smollm2_135m")
