local a = 1
return require "models.qwen3_9b"
