"""What is served now, reloaded from disk without a restart."""
