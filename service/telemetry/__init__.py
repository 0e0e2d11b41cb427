"""What the service counts and logs."""
