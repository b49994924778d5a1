"""Tests of runtime/scenes."""
