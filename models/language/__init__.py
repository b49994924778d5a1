"""Where a language model comes from: its configuration, tensors and text files, whatever they were written by."""
