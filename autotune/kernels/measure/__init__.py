"""The measured mode: compilers feed one measuring process for each GPU."""
