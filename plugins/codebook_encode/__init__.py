"""CodebookEncode: see spec.py and op.py."""
