return kitty {
    page = = 128,
}
