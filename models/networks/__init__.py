"""The torch modules, without their training."""
