"""Bytes on the wire: in closed form, and read from compiled programs."""
