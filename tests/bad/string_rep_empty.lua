local s = string.rep("", 1e18)
return s:rep(1e18, "x")
