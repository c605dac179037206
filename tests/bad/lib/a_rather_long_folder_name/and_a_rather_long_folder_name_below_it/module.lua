local spec = {}
return spec.key.bits
