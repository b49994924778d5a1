"""`zoo:keyword_stream`: the model, its training, its card and its weights."""
