"""Text in, encodings out. This room knows no model."""
