"""Tests of runtime/text."""
