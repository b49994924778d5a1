"""Turkish as roots and suffixes."""
