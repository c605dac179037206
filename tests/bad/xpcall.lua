xpcall(error, print)
