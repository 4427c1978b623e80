"""Clocks, limits of the device and shapes that benchmarks share."""
