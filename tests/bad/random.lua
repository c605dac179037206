local seed = math.random(1, 9)
