"""`zoo:surround_detector`: the model, its training, its card and its weights."""
