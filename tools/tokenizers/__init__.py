"""Tokenizers looked at and made: what measures them, trains them and moves models to others."""
