"""The search of a compression policy, from a config to its files."""
