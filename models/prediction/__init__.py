"""Encoder output to calibrated predictions, and the fitting of both. Never imports torch."""
