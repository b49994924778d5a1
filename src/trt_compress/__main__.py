"""`python -m trt_compress` is `trt-compress`, which begins here too."""

from trt_compress import current_folder


def main() -> None:
    """Run the command line, with nothing of the current folder on the search paths.

    Signals are noted before the rest is loaded, so that a stream knows of every one.
    """
    current_folder.forget()
    from trt_compress.tools import signals

    signals.hold()
    from trt_compress.tools import cli

    cli.main()


if __name__ == "__main__":
    main()
