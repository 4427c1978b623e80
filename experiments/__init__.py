"""Programs that train, compress and measure networks with `bandwidth`."""
