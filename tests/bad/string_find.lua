return ("aaaa"):find("a*a*a*a*b")
