"""`zoo:keyword_mome`: the model, its training, its card and its weights."""
