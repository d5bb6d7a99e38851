"""Fifty steps in mixed precision follow those in float32, for every objective and add-on."""
