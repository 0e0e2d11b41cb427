"""The `heed` command."""
