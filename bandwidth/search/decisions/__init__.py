"""What may be decided of a layer: channels, bits or both, and their errors."""
