"""Calibration: a model is run on data, and methods see what passes their sites."""
