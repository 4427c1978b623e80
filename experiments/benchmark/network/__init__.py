"""Benchmarks of network bandwidth: gradients and what carries them."""
