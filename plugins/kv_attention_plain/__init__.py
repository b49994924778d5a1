"""KVAttentionPlain: attention over a cache of 16- or 32-bit floats."""
