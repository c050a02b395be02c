"""The fused-MoE half: shapes, offline compilation, prediction, measurement, vLLM's file."""
