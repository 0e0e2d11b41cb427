"""Readers and checks of data sets and of users' files."""
