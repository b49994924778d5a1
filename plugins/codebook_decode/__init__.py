"""CodebookDecode: see op.py."""
