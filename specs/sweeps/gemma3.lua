-- kittygen explore specs/sweeps/gemma3.lua --kv tests/data/gemma3_a.safetensors -o report.html
return require "sweeps.wide" (require "models.gemma3_270m")
