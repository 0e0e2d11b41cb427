"""Measures bundles and explanations on validation data. Prints nothing."""
