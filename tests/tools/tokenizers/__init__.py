"""Tests of tools/tokenizers and the tokenizer commands."""
