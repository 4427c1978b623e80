"""Benchmarks of products and networks that run from compressed files."""
