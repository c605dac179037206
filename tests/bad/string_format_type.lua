local a
return string.format("%d", "x")
