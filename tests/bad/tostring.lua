error(tostring({}) .. " " .. tostring(kitty) .. " " .. tostring(1) .. " " .. tostring(nil))
