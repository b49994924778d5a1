"""CodebookEncode: see op.py."""
