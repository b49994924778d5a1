"""PyTorch to a proven bundle: trace, lower, preflight, verify, build."""
