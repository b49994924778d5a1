"""CodebookDecode: see spec.py and op.py."""
