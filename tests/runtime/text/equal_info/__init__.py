"""Windows of equally many bits."""
