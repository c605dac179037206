return string.gsub("a", "a", "b")
