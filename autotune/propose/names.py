"""Names of samplers, which the command line knows before it loads Optuna."""

MODEL, GRID = "forecast", "grid"
"""A model of ours chooses; everything there is, in an order drawn by the seed."""
NAMED = (MODEL, "gp", "tpe", "random", GRID)
"""Of the boots of a server; any other is MODULE:CLASS."""
