"""Soft Equivariance Regularization for invariant self-supervised learning."""
