"""Compressors (one paper a file), hosts (one model family a file) and small trained weights."""
