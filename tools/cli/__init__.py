"""The command line: one module a command, and what all of them share."""
