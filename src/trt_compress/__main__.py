"""`python -m trt_compress` is `trt-compress`, which begins here too."""

from trt_compress import current_folder


def main() -> None:
    """Run the command line, with nothing of the current folder on the search paths."""
    current_folder.forget()
    from trt_compress.tools import cli

    cli.main()


if __name__ == "__main__":
    main()
