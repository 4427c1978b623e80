"""What a sparse reducer is made of: units, selection, memory, exchange."""
