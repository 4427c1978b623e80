"""From trained weights to compressed files, and what is measured of them."""
