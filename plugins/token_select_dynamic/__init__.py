"""TokenSelectDynamic: see spec.py and op.py."""
