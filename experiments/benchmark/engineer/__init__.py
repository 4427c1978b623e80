"""Benchmarks of the engineer's bandwidth: searches of policies."""
