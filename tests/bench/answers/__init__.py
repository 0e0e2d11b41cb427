"""A check that a refactoring changes no answer: 2,000 recorded requests, compared byte for byte."""
