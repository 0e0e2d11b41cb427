"""Capability tests of a classifier: texts whose label holds by construction, and what a bundle answers to them."""
