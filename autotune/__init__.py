"""autotune: a tuner for vLLM's fused-MoE Triton kernels and serving parameters."""

__version__ = "0.1.0"
