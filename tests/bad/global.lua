page = 128
return kitty { page = page }
