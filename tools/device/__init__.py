"""What is copied to a device: a bundle with all that runs it there."""
