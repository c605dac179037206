local t = {}
t.t = t
return kitty(t)
