"""Text from a bundle that reads tokens: numpy, ONNX Runtime and `tokenizers`, and nothing else."""
