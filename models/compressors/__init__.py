"""Token compressors: one paper a file."""
