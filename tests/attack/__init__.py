"""Tests of attack."""
