"""Tests of runtime/generate."""
