"""`python -m trt_compress` is `trt-compress`."""

from trt_compress.tools.cli import main

if __name__ == "__main__":
    main()
