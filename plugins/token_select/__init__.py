"""TokenSelect: see op.py."""
