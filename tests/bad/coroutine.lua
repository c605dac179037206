local co = coroutine.wrap(function() end)
