"""Cache policies: what becomes of the keys and values that a decoder keeps, one paper a file."""
