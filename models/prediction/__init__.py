"""Encoder output to calibrated answers, and how that is fitted; never torch."""
