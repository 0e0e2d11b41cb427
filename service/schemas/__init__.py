"""Schemas of requests and answers, a file per family of routes, and their limits."""
