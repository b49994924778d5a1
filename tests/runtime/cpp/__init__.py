"""The C++ runtime: it is built once, and driven through its C interface by a process of its own."""
