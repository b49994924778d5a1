"""KVAppend: see spec.py and op.py."""
