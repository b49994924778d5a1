"""TokenRestore: see op.py."""
