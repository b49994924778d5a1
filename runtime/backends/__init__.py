"""What runs the graphs of a bundle: one small protocol (`base`), and a module for each library behind it."""
