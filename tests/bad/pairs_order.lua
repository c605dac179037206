local names = {}
for name in pairs { delta = 1, alpha = 1, charlie = 1, bravo = 1, [2] = 1, [1] = 1, [1.5] = 1, [true] = 1 } do
    table.insert(names, tostring(name))
end
error(table.concat(names, " "))
