"""The fused-MoE family: the shape of a layer, its constraints, defaults and file name."""
