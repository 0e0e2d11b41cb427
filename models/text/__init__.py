"""Text in, encodings out; this room knows no model."""
