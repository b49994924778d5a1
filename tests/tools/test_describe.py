"""A bundle in words: what many graphs share, and states of many layers."""

from trt_compress.format.graphs import State
from trt_compress.format.manifest import WeightForm
from trt_compress.tools.describe import state_rows, weights_text


def _form(graph: str, tensors: int, *, dtype: str = "int8", group: int | None = 32) -> WeightForm:
    return WeightForm(graph=graph, dtype=dtype, group=group, tensors=tensors, parameters=0, bytes=tensors << 20)


def test_weights_that_graphs_share_are_counted_once() -> None:
    shared = [_form(graph, 3) for graph in ("step", "score")]
    assert weights_text(shared) == "3 in int8 by 32 (3.0 MiB), in each of 2 graphs"
    assert weights_text(shared[:1]) == "3 in int8 by 32 (3.0 MiB)"
    assert weights_text([_form("a", 3), _form("b", 2)]) == "5 in int8 by 32 (5.0 MiB)"
    assert weights_text([]) is None


def _state(name: str, layer: int, shape: tuple[int | str, ...] = ("batch", 2), *, alias: bool = True) -> State:
    return State(
        name=name,
        graph="step",
        layer=layer,
        kind="cache",
        shape=shape,
        dtype="float32",
        alias=alias,
        input=f"{name}_in",
        output=f"{name}_out",
    )


def test_states_of_many_layers_are_one_row_where_they_are_alike() -> None:
    alike = [_state(f"keys_{layer}", layer) for layer in range(3)]
    other = [_state("keys_3", 3, ("batch", 9)), _state("keys_4", 4, alias=False)]
    rows = list(state_rows([*alike, *other]))
    assert [row[0] for row in rows] == ["keys_0 … keys_2 (3)", "keys_3", "keys_4"]
    assert [row[2] for row in rows] == ["cache of 3 layers", "cache of layer 3", "cache of layer 4"]
    assert rows[0][3] == "keys_0_out → keys_0_in, in place" and rows[2][3] == "keys_4_out → keys_4_in"
