"""Speculative decoding: how many tokens to draft, with what, on a real vLLM server."""
