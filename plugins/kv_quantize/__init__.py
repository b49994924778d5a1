"""KVQuantize: see spec.py and op.py."""
