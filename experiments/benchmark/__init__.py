"""Measurements, each a table on the terminal and a JSON file."""
