"""Training rows made from others: noise, joined texts, and opinions hidden in long ones."""
