"""One session under several threads: histories are never mixed, and sessions without a history are free."""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.attack.small_bundles import Around, counter_bundle, ones
from trt_compress.errors import ConfigError
from trt_compress.runtime.session import Session

THREADS = 4
REFUSED = re.compile(
    r"Another thread is using these states \('\w+\.before'\), which hold the history of one caller; give each thread "
    r"states of its own, by session\.new_states\(\)\."
)


def together(work: Callable[[int], None]) -> None:
    """Run `work` on several threads that begin at the same moment; what one raises is raised."""
    barrier, errors = threading.Barrier(THREADS), list[BaseException]()

    def one(number: int) -> None:
        try:
            barrier.wait(120)
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=one, args=(number,), daemon=True) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]


def test_a_state_counts_every_run_that_was_not_refused(attack: Any, tmp_path: Path) -> None:
    runs = attack.count(2_000, 200_000)
    done, refused, wrong = [0] * THREADS, [0] * THREADS, [0] * THREADS
    with Session.open(counter_bundle(tmp_path / "b"), threads=1) as session:

        def work(number: int) -> None:
            last = 0.0
            for _ in range(runs // THREADS):
                try:
                    total = session.run(ones())["total"]
                except ConfigError as error:
                    assert REFUSED.fullmatch(error.message), error.message
                    refused[number] += 1
                    continue
                done[number] += 1
                wrong[number] += not (total[0, 0] == total[0, -1] > last)
                last = float(total[0, 0])

        together(work)
        in_state = session.run(ones())["total"][0, 0] - 1
    attack.saw(refused=sum(refused), mixed=abs(int(in_state) - sum(done)) + sum(wrong))
    assert in_state == sum(done) > 0 and sum(done) + sum(refused) == runs // THREADS * THREADS and not any(wrong)


class Held(Around):
    """A graph that is run until the test lets it go."""

    def __init__(self, session: Session, graph: str) -> None:
        self.entered, self.go_on = threading.Event(), threading.Event()
        super().__init__(session, graph, self._wait)

    def _wait(self) -> None:
        self.entered.set()
        assert self.go_on.wait(120)


def test_while_a_run_goes_on_its_states_are_its_own(tmp_path: Path) -> None:
    session = Session.open(counter_bundle(tmp_path / "b", graphs=("left", "right")), threads=1)
    held = Held(session, "left")
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(session.run_graph("left", ones(5))), daemon=True)
    thread.start()
    assert held.entered.wait(120)
    for refused in (
        lambda: session.run_graph("left", ones()),
        lambda: session.run({"left.x": ones()["x"], "right.x": ones()["x"]}),
        session.reset,
    ):
        with pytest.raises(ConfigError, match="Another thread is using these states"):
            refused()
    assert session.run_graph("right", ones())["total"][0, 0] == 1  # another history
    held.go_on.set()
    thread.join(120)
    assert found[0]["total"][0, 0] == 5 and session.run_graph("left", ones())["total"][0, 0] == 6
    session.reset()
    assert session.run_graph("left", ones())["total"][0, 0] == 1


def test_a_run_that_fails_gives_its_states_back(tmp_path: Path) -> None:
    with Session.open(counter_bundle(tmp_path / "b"), threads=1) as session:
        whole = session.loaded.graphs["model"]

        def fail() -> None:
            raise MemoryError

        Around(session, "model", fail)
        with pytest.raises(MemoryError):
            session.run(ones())
        session.loaded.graphs["model"] = whole
        assert session.run(ones(3))["total"][0, 0] == 3


def test_a_session_that_is_closed_under_a_run_says_so_or_lets_it_end(tmp_path: Path) -> None:
    session = Session.open(counter_bundle(tmp_path / "b"), threads=1)
    held = Held(session, "model")
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(session.run(ones(2))), daemon=True)
    thread.start()
    assert held.entered.wait(120)
    session.close()
    held.go_on.set()
    thread.join(120)
    assert found[0]["total"][0, 0] == 2
    with pytest.raises(ConfigError, match="The session is closed"):
        session.run(ones())


def test_threads_share_a_session_with_states_of_their_own(attack: Any, tmp_path: Path) -> None:
    runs = attack.count(2_000, 200_000)
    with Session.open(counter_bundle(tmp_path / "b"), threads=1) as session:
        wrong = [0] * THREADS

        def work(number: int) -> None:
            states = session.new_states()
            for step in range(runs // THREADS):
                wrong[number] += not np.all(session.run(ones(number + 1), states)["total"] == (number + 1) * (step + 1))

        together(work)
    attack.saw(wrong=sum(wrong), refused=0)
    assert not any(wrong)


def test_threads_share_a_session_without_states(attack: Any, tmp_path: Path) -> None:
    runs = attack.count(2_000, 200_000)
    with Session.open(counter_bundle(tmp_path / "b", stateful=False), threads=1) as session:
        wrong = [0] * THREADS

        def work(number: int) -> None:
            for step in range(runs // THREADS):
                value = float(number * 1000 + step % 1000)
                wrong[number] += not np.all(session.run(ones(value))["total"] == 2 * value)

        together(work)
    attack.saw(wrong=sum(wrong), refused=0)
    assert not any(wrong)
