"""Rounds of a benchmark are told apart by how far the cores were from each other."""

from trt_compress.tools.bench.core_distance import core_distance
from trt_compress.tools.bench.deit_small import by_core_distance
from trt_compress.tools.bench.ort_turns import Turns


def test_rounds_are_told_apart() -> None:
    distances = [80.0, 360.0, None, 79.0, 380.0]
    ns = {"dense": [20, 20, 99, 20, 20], "compressed": [10, 16, 1, 10, 16], "native": [8, 10, 1, 8, 10]}
    turns = Turns(ns=ns, core_distance_ns=distances)
    assert turns.rounds(near=True) == [0, 3] and turns.rounds(near=False) == [1, 4]
    found = by_core_distance(turns)
    assert (found["near"]["compressed"]["median"], found["near"]["native"]["median"]) == (2.0, 2.5)
    assert (found["far"]["compressed"]["median"], found["far"]["native"]["median"]) == (1.25, 2.0)
    assert (found["near"]["core_distance_ns"], found["far"]["core_distance_ns"]) == (79.5, 370.0)
    unknown = Turns(ns=ns, core_distance_ns=[None] * 5)
    assert by_core_distance(unknown) == {}


def test_a_round_trip_is_measured_or_is_not_known() -> None:
    measured = core_distance()()
    assert measured is None or 5 < measured < 100_000
