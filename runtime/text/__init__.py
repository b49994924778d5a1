"""Text and its tokens where there is no model: counting, cutting, growing, and encoding without merges."""
