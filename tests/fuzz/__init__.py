"""Hostile input over every verb and every kind of file: `python -m tests.fuzz`."""
