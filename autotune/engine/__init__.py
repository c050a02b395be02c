"""What the project knows of vLLM and of model hubs: arguments, variables, model files."""
