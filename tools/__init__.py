"""The command line, doctor, benchmarks and tables: everything that a person, rather than a program, talks to."""
