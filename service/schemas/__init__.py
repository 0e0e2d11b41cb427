"""The wire, one file per route family, and every limit of it."""
