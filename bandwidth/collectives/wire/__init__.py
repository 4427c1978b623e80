"""Messages: trees as one vector, and the codes of indices and values."""
