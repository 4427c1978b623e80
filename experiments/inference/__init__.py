"""Networks that run from compressed files."""
