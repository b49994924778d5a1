"""The form of a bundle: what its manifest says, how it is opened, and the records of which its documents are made.

Whoever writes a bundle and whoever runs it share this and nothing else. It needs neither torch nor onnx.
"""
