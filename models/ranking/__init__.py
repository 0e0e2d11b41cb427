"""Ranks items for a user history, with NumPy alone."""
