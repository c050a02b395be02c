"""Reads what a vLLM server, Docker, Ray or the kernel wrote into a log."""
