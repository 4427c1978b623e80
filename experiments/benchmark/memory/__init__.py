"""Benchmarks of memory bandwidth: files, coders and what they keep."""
