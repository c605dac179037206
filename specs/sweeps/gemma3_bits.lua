-- kittygen explore specs/sweeps/gemma3_bits.lua --kv tests/data/gemma3_a.safetensors -o report.html
return require "sweeps.bits" (require "models.gemma3_270m")
