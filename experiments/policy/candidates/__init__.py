"""What a search may make of a network, and how each candidate scores."""
