"""What hosts share: attention, and what happens to tokens that are not all computed."""
