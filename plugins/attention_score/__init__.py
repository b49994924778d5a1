"""AttentionScore: see op.py."""
