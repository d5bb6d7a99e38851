"""The format that measuring writes and reporting reads."""
