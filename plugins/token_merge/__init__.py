"""TokenMerge: see spec.py and op.py."""
