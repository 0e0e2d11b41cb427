"""Training folder to verified bundle with its model card."""
