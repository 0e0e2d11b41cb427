"""The heads, reply sets and catalogues in service, reloaded from disk without a restart."""
