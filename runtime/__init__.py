"""Open a bundle, run it, and have it write, on a machine that has neither torch nor onnx."""

from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import Manifest
from trt_compress.runtime.generate.generator import Generator
from trt_compress.runtime.generate.sampling import Sampling
from trt_compress.runtime.session import Session
from trt_compress.runtime.states import States

__all__ = ["Bundle", "Generator", "Manifest", "Sampling", "Session", "States"]
