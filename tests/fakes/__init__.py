"""Stand-ins for libraries that need a GPU, held to the real ones' names."""
