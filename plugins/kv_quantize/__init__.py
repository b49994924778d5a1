"""KVQuantize: see op.py."""
