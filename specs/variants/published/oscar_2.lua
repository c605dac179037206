-- 2 bits after rotations from the covariances of queries and of attention's outputs, clipped, first and newest tokens exact: after OSCAR,
-- arXiv 2605.17757. Where that clips by thresholds from its calibration, each group here takes the range of least squares.
-- The rotations come from python/calibrate.py:
--     require "variants.published.oscar_2" { model = ..., calibration = "qwen3-8b.safetensors" }
return function(overrides)
    return kitty({
        variant = "oscar-2",
        page = 128,
        sink = 64,
        key = { bits = 2, along = "channels", group = "head", rotation = "matrix", range = "least_squares" },
        value = { bits = 2, along = "channels", group = "head", rotation = "matrix", range = "least_squares", window = 256 },
    }, overrides)
end
