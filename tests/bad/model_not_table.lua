return kitty {
    model = "qwen3_8b",
}
