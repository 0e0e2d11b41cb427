"""The torch modules, and nothing about how they are trained."""
