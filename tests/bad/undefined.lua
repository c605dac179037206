return kitty {
    page = hundred,
}
