"""A vLLM server as processes or a container: its command line, start, health, failures and end."""
