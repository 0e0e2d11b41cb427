"""Schemas of requests and answers, one file per route family, and their limits."""
