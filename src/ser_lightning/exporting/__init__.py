"""Backbones for others: exports that other libraries load, and embeddings of images in a file."""
