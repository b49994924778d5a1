"""TokenMerge: see op.py."""
