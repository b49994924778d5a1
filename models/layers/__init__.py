"""What hosts share: attention, windows of a grid, and what happens to tokens that are not all computed."""
