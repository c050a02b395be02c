"""Kind 2, ``autotune spec``: speculative decoding and flags of ``vllm serve``, on real servers."""
