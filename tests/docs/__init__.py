"""The documents: how they are read, and the pages that are written from the code."""
