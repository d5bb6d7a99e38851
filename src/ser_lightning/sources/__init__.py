"""Where images come from: one data set per file."""
