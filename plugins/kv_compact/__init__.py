"""KVCompact: see spec.py and op.py."""
