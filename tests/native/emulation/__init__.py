"""Tests of native/emulation."""
