"""The choice from trials: winners by workload, and the statistics behind them. Pure."""
