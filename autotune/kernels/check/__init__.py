"""Checks that run no kernel: configuration files, and whether this machine is ready."""
