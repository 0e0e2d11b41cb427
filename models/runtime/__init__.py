"""Runtimes, which run a graph on a device."""
