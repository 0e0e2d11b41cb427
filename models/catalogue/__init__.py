"""Items on disk and in memory, their vectors and the index over them; this room knows no model."""
