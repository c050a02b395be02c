"""Preflight of a pair: whether a drafter can draft for a target. Reads their small files."""
