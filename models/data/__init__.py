"""Data sets and a team's own files, read and checked."""
