"""Hosts: model families that can carry compressors, one family a file."""
