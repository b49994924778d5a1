"""Names of the files that a report is written to."""

_SUFFIXES = (".report.json", ".report.html", ".trace.json")


def files_of_report(name: str) -> tuple[str, ...]:
    """JSON, page and trace of the result `name`."""
    return tuple(f"{name}{suffix}" for suffix in _SUFFIXES)
