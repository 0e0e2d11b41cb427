"""What the service does under overload and faults, seen from outside."""
