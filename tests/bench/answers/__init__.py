"""Proof that a refactoring changes no answer: 2,000 recorded requests and a comparison byte for byte."""
