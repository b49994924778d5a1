"""KVAttention: see op.py."""
