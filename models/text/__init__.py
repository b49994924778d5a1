"""Torch parts of papers that treat text before a model reads it."""
