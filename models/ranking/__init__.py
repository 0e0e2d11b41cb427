"""Ranking of items for a user history, with NumPy only."""
