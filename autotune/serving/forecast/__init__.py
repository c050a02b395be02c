"""PREDICTED rates of settings that were not booted, from those that were."""
