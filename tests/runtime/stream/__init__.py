"""Tests of runtime/stream."""
