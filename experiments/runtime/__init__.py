"""What every program needs around its arrays: devices, files, flags, links, tables."""
