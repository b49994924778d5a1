"""TokenMix: see spec.py and op.py."""
