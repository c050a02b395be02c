"""What to try next: proposers by Optuna, and in a given order."""
