"""Tokens with Meaning: Turkish text as roots and suffixes that share a number in all their forms.

Tables of roots, suffixes and pieces; the longest root first, then the longest suffix, then the longest piece; a decoder
that chooses a suffix's form by vowel harmony. That a text comes back is not promised: `round_trip` measures it.

Source: Tokens with Meaning, arXiv:2508.14292; code and tables malibayram/turkish-tokenizer 0f179b0 (MIT).
"""
