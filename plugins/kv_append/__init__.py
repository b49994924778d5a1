"""KVAppend: see op.py."""
