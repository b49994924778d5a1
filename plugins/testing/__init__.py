"""What operators are tested with: samples, the reference, forms as columns, the one comparison, the plugin harness."""

from trt_compress.plugins.testing.samples import call_torch, is_batched, onnx_model, sample_inputs

__all__ = ["call_torch", "is_batched", "onnx_model", "sample_inputs"]
