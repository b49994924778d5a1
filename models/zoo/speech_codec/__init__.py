"""`zoo:speech_codec`: the model, its training, its card and its weights."""
