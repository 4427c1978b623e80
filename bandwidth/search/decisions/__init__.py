"""What may be decided of a layer: channels, bits, or both, with their errors."""
