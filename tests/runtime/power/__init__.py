"""Tests of runtime/power."""
