"""One file an experiment: what differs from `default.py`."""
