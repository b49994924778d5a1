"""`python -m trt_compress` is `trt-compress`, which begins here too."""

import os
import sys

from trt_compress import current_folder


def main() -> None:
    """Run the command line, with nothing of the current folder on the search paths.

    Signals are noted before the rest is loaded, so that a stream knows of every one.
    """
    _open_standard_streams()
    current_folder.forget()
    from trt_compress.tools.cli import signals

    signals.hold()
    from trt_compress.tools.cli.main import main as run

    run()


def _open_standard_streams() -> None:
    """Where a program was started without stdin, stdout or stderr (`2>&-`), the next file that is opened would take the
    number, and whatever a library prints would go into that file."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout = sys.stdout or open(os.devnull, "w", encoding="utf-8")
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")


if __name__ == "__main__":
    main()
