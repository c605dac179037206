error("no model today")
