"""Measures bundles and explanations on validation data; prints nothing."""
