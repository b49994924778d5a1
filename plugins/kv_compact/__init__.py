"""KVCompact: see op.py."""
