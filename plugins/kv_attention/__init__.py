"""KVAttention: see spec.py and op.py."""
