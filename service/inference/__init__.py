"""From items to predictions in this process: no HTTP, no Ray."""
