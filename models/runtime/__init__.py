"""Runs a graph on a device."""
