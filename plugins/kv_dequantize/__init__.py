"""KVDequantize: see op.py."""
