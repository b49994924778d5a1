"""TokenSelectDynamic: see op.py."""
