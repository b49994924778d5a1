"""The README is true: its tables are up to date, and what it shows runs."""

import re
import shlex
import subprocess
import sys
from itertools import groupby
from pathlib import Path

import pytest

from tests.typed_commands import Ended, Typed
from trt_compress.tools import gen_tables

ROOT = Path(__file__).parents[1]
OURS = "trt-compress "
LONG = 600.0  # seconds, for a machine that has much else to do
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [
    ROOT / name for name in ("README.md", "CONTRIBUTING.md", "plugins/README.md", "docs/figures.md", "docs/jetson.md")
]


def blocks(language: str) -> list[str]:
    """Code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("file", gen_tables.FILES, ids=str)
def test_tables_are_up_to_date(file: Path) -> None:
    text = (ROOT / file).read_text(encoding="utf-8")
    assert "<!-- table: " in text
    assert gen_tables.fill(text) == text


def test_check_notices_an_outdated_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "README.md"
    file.write_text("<!-- table: targets -->\n<!-- end -->\n")
    assert gen_tables.main(["--check", "--file", str(file)]) == 3
    assert "not up to date; run" in capsys.readouterr().err
    assert gen_tables.main(["--file", str(file)]) == 0
    assert "`jetson-orin-jp6`" in file.read_text()
    assert gen_tables.main(["--check", "--file", str(file)]) == 0


def test_an_unknown_table_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "README.md"
    file.write_text("<!-- table: nonsense -->\n<!-- end -->\n")
    assert gen_tables.main(["--file", str(file)]) == 2
    assert "table 'nonsense' is not known; there are operators" in capsys.readouterr().err


def _is_slow_here(done: Ended) -> bool:
    """Whether all that failed is a limit on measured time, which no test judges: other tests run beside it."""
    return done.code == 3 and re.search(r"error: 1 of \d+ limits are broken: speedup is", done.err) is not None


@pytest.mark.slow
def test_what_the_readme_types_runs(tmp_path: Path, commands: Typed) -> None:
    """Block after block in one folder: commands of ours are typed, what stands between them is the shell's."""
    installed = [str(Path(sys.executable).parent / "trt-compress"), "--version"]
    assert subprocess.run(installed, check=True, capture_output=True, text=True).stdout
    shown = blocks("bash")
    assert shown
    for block in shown:
        said = ""
        for is_ours, lines in groupby(block.splitlines(), lambda line: line.startswith(OURS)):
            if not is_ours:
                shell = ["bash", "-euc", "\n".join(lines)]
                said += subprocess.run(shell, cwd=tmp_path, check=True, capture_output=True, text=True).stdout
                continue
            for line in lines:
                done = commands(*shlex.split(line)[1:], folder=tmp_path, within=LONG)
                assert done.code == 0 or _is_slow_here(done), f"{line}: {done.err}"
                said += done.out
        assert said


def test_the_python_of_the_readme_runs(tmp_path: Path, commands: Typed) -> None:
    shown = blocks("python")
    assert shown
    for block in shown:
        done = commands("python", block, folder=tmp_path, within=LONG)
        assert done.code == 0, done.err
        assert done.out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"\]\(([^):]+)\)", text)
    for target in links:
        file, _, place = target.partition("#")
        assert not file or (page.parent / file).exists(), target
        if place and (not file or file.endswith(".md")):
            there = (page.parent / file).read_text(encoding="utf-8") if file else text
            assert place in {anchor(heading) for heading in re.findall(r"^#+ (.+)$", there, re.MULTILINE)}, target


def anchor(heading: str) -> str:
    """The name that a heading has in a link, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
