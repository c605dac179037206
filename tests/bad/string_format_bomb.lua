local s = string.rep("x", 60000)
return string.format("%s%s", s, s)
