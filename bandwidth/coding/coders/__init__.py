"""Entropy coders and the streams of bits below them."""
