"""Arithmetic over workers: sums in a written order, axes, N become M."""
