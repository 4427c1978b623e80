"""What a program with a config does around its work: flags, errors."""
