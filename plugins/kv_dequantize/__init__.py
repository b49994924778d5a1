"""KVDequantize: see spec.py and op.py."""
