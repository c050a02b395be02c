"""Who meets the baseline again in fresh boots, and what wins."""
