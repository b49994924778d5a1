"""What is measured while a bundle runs: latency and power."""
