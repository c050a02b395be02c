"""Offline compilation of the real kernel, for a device that need not be there."""
