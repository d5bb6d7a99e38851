"""Pure functions: what a number is."""
