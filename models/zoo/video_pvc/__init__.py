"""`zoo:video_pvc`: the model, its training, its card and its weights."""
