"""Operators: one folder each, all its forms side by side."""
