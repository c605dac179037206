return kitty()
