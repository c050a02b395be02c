"""A study's file for vLLM, SGLang or a folder, with its evidence."""
