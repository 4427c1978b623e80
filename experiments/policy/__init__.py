"""The search of a compression policy, from a config to the files that it leaves."""
