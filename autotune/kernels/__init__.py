"""Kind 1, ``autotune moe``: Triton kernels of vLLM, compiled, predicted, measured and exported."""
