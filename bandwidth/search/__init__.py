"""Search of compression policies, compiled as one program."""
