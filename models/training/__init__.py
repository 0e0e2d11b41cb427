"""Training runs: configuration in, training folder out."""
