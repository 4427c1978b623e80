"""Hostile files for the reader of `.bwz`."""
