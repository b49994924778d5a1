"""What CMake is told of the headers that the C++ runtime needs: `python -m trt_compress.tools.cmake_options`."""

import sys

from trt_compress.errors import PluginError
from trt_compress.plugins.headers import json_headers, onnxruntime_headers
from trt_compress.tools.console import print_text, say_error


def main() -> int:
    """Print the options."""
    try:
        print_text(f"-DTRTC_ONNXRUNTIME={onnxruntime_headers()} -DTRTC_JSON={json_headers()}")
    except PluginError as error:
        say_error(error.message, error.hint)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
