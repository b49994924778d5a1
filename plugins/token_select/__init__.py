"""TokenSelect: see spec.py and op.py."""
