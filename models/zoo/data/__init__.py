"""What the models of the zoo are trained and judged on, made from a seed."""
