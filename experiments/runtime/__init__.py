"""What every program needs around its arrays: devices, files, flags, tables."""
