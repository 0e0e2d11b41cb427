"""From items to predictions in this process, without HTTP and without Ray."""
