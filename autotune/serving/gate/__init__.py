"""What a server says over hundreds of tokens, and whether it is what its target says."""
