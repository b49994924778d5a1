"""TokenMix: see op.py."""
