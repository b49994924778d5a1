"""`zoo:video_vit`: the model, its training, its card and its weights."""
