"""AttentionScore: see spec.py and op.py."""
