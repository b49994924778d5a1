"""The methods there are, their options, and the spec strings that name them. Needs neither torch nor onnx.

`vision`, `audio` and `video` hold the options of each method and its entry; `table` is the list of all of them; `spec`
reads and writes `tome:num_merged=13+evit:keep_ratio=0.7`. What a method computes lies in the module that its entry
names. `artifact` is what calibration made for a method.
"""

from trt_compress.methods.artifact import ArtifactCard, ArtifactFile, ArtifactForm
from trt_compress.methods.config import CompressorConfig, KeepRatioConfig, Method
from trt_compress.methods.spec import CompressorSpec, make_spec, parse_spec, spec_from_table, spec_string
from trt_compress.methods.table import METHODS

__all__ = [
    "METHODS",
    "ArtifactCard",
    "ArtifactFile",
    "ArtifactForm",
    "CompressorConfig",
    "CompressorSpec",
    "KeepRatioConfig",
    "Method",
    "make_spec",
    "parse_spec",
    "spec_from_table",
    "spec_string",
]
