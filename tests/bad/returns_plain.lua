return require "models.qwen3_8b"
