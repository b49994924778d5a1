"""TokenRestore: see spec.py and op.py."""
