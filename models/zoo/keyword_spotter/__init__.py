"""`zoo:keyword_spotter`: the model, its training, its card and its weights."""
