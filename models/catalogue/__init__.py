"""Items on disk and in memory, their vectors and the index over them. This room knows no model."""
