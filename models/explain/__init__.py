"""Attributions and attention maps from the served weights."""
