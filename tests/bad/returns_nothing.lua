local spec = kitty { page = 128 }
