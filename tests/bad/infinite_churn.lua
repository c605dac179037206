local s = string.rep("x", 60000)
while true do
    local t = s .. "y"
end
