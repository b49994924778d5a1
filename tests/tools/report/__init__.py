"""Tests of tools/report."""
