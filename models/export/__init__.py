"""Export of a training folder as a verified bundle with its model card, and of a bundle as a base encoder."""
