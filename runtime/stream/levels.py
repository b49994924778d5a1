"""What a stream runs for each frame: one session, or one of several compiled keep levels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.format.bundle import Bundle
from trt_compress.format.manifest import Manifest, TensorInfo
from trt_compress.runtime.session import Session
from trt_compress.runtime.states import States
from trt_compress.runtime.stream.frame import Array
from trt_compress.runtime.stream.result import LevelInfo
from trt_compress.runtime.tokens import tokens_of_sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One way to run the model: the same inputs and outputs at another cost.

    Attributes:
        name: As the result calls it.
        run: Inputs by name, and the states of the stream → outputs by name.
        info: What it is, for the result.
        tokens: Tokens of one sample before and after, as `tokens_of_sample` has them, or None.
        cost: FLOPs of one sample, if known; the order of levels follows from it.
    """

    name: str
    run: Callable[[Mapping[str, Array], States | None], dict[str, Array]]
    info: LevelInfo
    tokens: tuple[int, int] | None = None
    cost: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LevelSet:
    """The levels of a stream, most expensive first, over the sessions that run them. Several streams may share them."""

    levels: tuple[Level, ...]
    sessions: tuple[Session, ...]
    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]

    @property
    def stateful(self) -> bool:
        """Whether a run depends on the one before."""
        return any(session.loaded.states for session in self.sessions)

    def new_states(self, streams: int) -> States | None:
        """What a stream carries from frame to frame: every stream has its own. None: a run depends on none before it.

        Raises:
            ConfigError: Several streams are to run as one, and a state has no row for each.
        """
        if not self.stateful:
            return None
        session = self.sessions[0]  # those with states are alone
        _check_batched(session.bundle.manifest, streams)
        return session.new_states()


def levels_from_sessions(sessions: Sequence[Session]) -> LevelSet:
    """Make the levels of a stream: one of each session, or one of each graph of a single session.

    Sessions are bundles of the same model, compressed differently; their folders give the names. The graphs of one
    bundle are levels if they have the role "model"; they share their states by name.

    Raises:
        ConfigError: Sessions differ in inputs or outputs, or several have states, which no two sessions share.
        UnsupportedError: A bundle reads sequences of tokens.
    """
    for session in sessions:
        refuse_procedure(session.bundle)
    first = sessions[0]
    if len(sessions) == 1 and _graphs_are_levels(first):
        return _levels_of_graphs(first)
    for session in sessions[1:]:
        if session.inputs != first.inputs or session.outputs != first.outputs:
            raise ConfigError(
                f"'{session.bundle.path}' and '{first.bundle.path}' differ in their inputs or outputs; keep levels are "
                "bundles of one model."
            )
        if session.bundle.manifest.states or first.bundle.manifest.states:
            raise ConfigError(
                f"'{session.bundle.path}' has states, and a level would not see what the others saw; export the levels "
                "as graphs of one bundle, which share them."
            )
    levels = [_level_of_session(session) for session in sessions]
    return LevelSet(
        levels=_in_order(_with_unique_names(levels)),
        sessions=tuple(sessions),
        inputs=first.inputs,
        outputs={**first.outputs, **first.handed_on},
    )


def refuse_procedure(bundle: Bundle) -> None:
    """Refuse a bundle that is no level of a stream, as it reads sequences token by token.

    Raises:
        UnsupportedError: It does.
    """
    if bundle.manifest.procedure is not None:
        raise UnsupportedError(
            f"'{bundle.path}' reads sequences of tokens by a procedure, and this runs pictures, sound or arrays one by "
            "one; text is written by `trt-compress generate`, and tokens are read by trt_compress.runtime.Generator."
        )


def _graphs_are_levels(session: Session) -> bool:
    """Whether a run takes one of several graphs: those of the role "model", which a manifest has alike."""
    return len(session.graphs) > 1 and all(session.bundle.manifest.graph(n).role == "model" for n in session.graphs)


def _levels_of_graphs(session: Session) -> LevelSet:
    manifest = session.bundle.manifest
    flops = (manifest.flops or {}).get("graphs", {})
    levels = []
    for name in session.graphs:
        graph = manifest.graph(name)
        sites = tuple(part for part in manifest.compression if part.site.startswith(f"{name}/"))
        cost = flops.get(name, {}).get("total")
        info = LevelInfo(
            name=name,
            bundle=manifest.name,
            digest=manifest.digest,
            graphs={graph.file: manifest.files[graph.file].sha256},
            compression=sites,
            flops=cost,
        )
        levels.append(
            Level(name=name, run=partial(session.run_graph, name), info=info, tokens=tokens_of_sample(sites), cost=cost)
        )
    return LevelSet(
        levels=_in_order(levels),
        sessions=(session,),
        inputs=session.inputs_of(session.graphs[0]),
        outputs=session.outputs_of(session.graphs[0]),
    )


def _level_of_session(session: Session) -> Level:
    manifest = session.bundle.manifest
    name = session.bundle.path.resolve().name
    return Level(
        name=name,
        run=partial(session.run, handed_on=True),
        info=LevelInfo(
            name=name,
            bundle=manifest.name,
            digest=manifest.digest,
            graphs={graph.file: manifest.files[graph.file].sha256 for graph in manifest.graphs},
            compression=manifest.compression,
            flops=(manifest.flops or {}).get("total"),
            baseline_flops=manifest.baseline_flops,
        ),
        tokens=tokens_of_sample(manifest.compression),
        cost=(manifest.flops or {}).get("total"),
    )


def _with_unique_names(levels: Sequence[Level]) -> list[Level]:
    names = [level.name for level in levels]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"Two keep levels are named '{min(repeated)}'; give bundles in folders of different names.")
    return list(levels)


def _in_order(levels: Sequence[Level]) -> tuple[Level, ...]:
    """Most expensive first; levels of unknown cost stay in the order in which they were given."""
    if any(level.cost is None for level in levels):
        return tuple(levels)
    return tuple(sorted(levels, key=lambda level: -(level.cost or 0.0)))


def _check_batched(manifest: Manifest, streams: int) -> None:
    """Several streams as one query need states with a row for each."""
    batch = {info.shape[0] for graph in manifest.graphs for info in graph.inputs if info.shape}
    for state in manifest.states:
        if streams > 1 and (not state.shape or state.shape[0] not in batch or state.shape[0] == 1):
            raise ConfigError(
                f"{streams} streams cannot share the state '{state.graph}.{state.input}', which has no batch axis: it "
                "holds the history of one; run each stream with a session of its own."
            )
