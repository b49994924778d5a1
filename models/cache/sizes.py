"""What the cache of a layer takes: all that its policies keep, counted once, for plans, manifests and tables."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from trt_compress.models.cache.contract import ROWS, CachePolicy, Selector, Store
from trt_compress.models.compressors.place import SitePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class GrowingState:
    """A state that grows with the tokens that are kept.

    Attributes:
        name: As the policy has it.
        numbers: Of one row.
        bytes: Of one number.
        tokens: Of one row.
        share: Of the tokens that are kept, those that have one.
    """

    name: str
    numbers: int
    bytes: int
    tokens: int
    share: float


def bytes_of(policies: Sequence[CachePolicy], tokens: int) -> int:
    """Bytes of one sequence of so many tokens in one layer, of as many entries as are then kept."""
    return _bytes(policies, _store(policies), _kept(policies, tokens))


def growth_of(policies: Sequence[CachePolicy]) -> float:
    """Bytes by which one layer of a sequence grows with a token that is kept, on average."""
    return _growth(policies, _store(policies))


def growing(policies: Sequence[CachePolicy]) -> list[GrowingState]:
    """The states of a layer that make up the bytes of a token; rows that wait to be packed are none of them."""
    store = _store(policies)
    counted = {each.name: each for each in store.lengths() if store.period is None or each.name != ROWS}
    found = []
    for state in (state for policy in policies for state in policy.cache_states()):
        grown = [dim for dim in state.shape if isinstance(dim, str)]
        if grown and grown[0] in counted:
            numbers = math.prod(dim for dim in state.shape if isinstance(dim, int))
            size = np.dtype(state.dtype).itemsize
            length = counted[grown[0]]
            found.append(
                GrowingState(name=state.name, numbers=numbers, bytes=size, tokens=length.unit, share=length.share)
            )
    return found


def with_bytes(sites: Sequence[SitePlan], layers: Sequence[Sequence[CachePolicy]]) -> tuple[SitePlan, ...]:
    """A plan with what each policy keeps; of a store that was not named, with the first policy of its layer."""
    found = []
    for site in sites:
        policies = layers[site.layer]
        names = [each.compressor for each in sites if each.layer == site.layer]
        store = _store(policies)
        named = store.method.name if store.method.name in names else names[0]
        own = [
            policy
            for policy in policies
            if (policy is store and site.compressor == named)
            or (policy is not store and policy.method.name == site.compressor and policy.cache_states())
        ]
        if own:
            kept = _kept(policies, int(site.tokens_in))
            codes = {state.bits for state in store.cache_states() if state.bits is not None} if store in own else set()
            site = replace(
                site,
                bytes_per_token=_growth(own, store),
                bytes=_bytes(own, store, kept),
                bits=tuple(sorted(codes)),
            )
        found.append(site)
    return tuple(found)


def _store(policies: Sequence[CachePolicy]) -> Store:
    return next(policy for policy in policies if isinstance(policy, Store))


def _kept(policies: Sequence[CachePolicy], tokens: int) -> int:
    """Entries that are kept of a prompt of so many tokens."""
    return next((each.kept_of(tokens) for each in policies if isinstance(each, Selector)), tokens)


def _bytes(policies: Sequence[CachePolicy], store: Store, tokens: int) -> int:
    rows = store.settled(tokens)
    return sum(store.bytes_of(tokens) if policy is store else policy.bytes_at(rows) for policy in policies)


def _growth(policies: Sequence[CachePolicy], store: Store) -> float:
    """Bytes a token, on average over a period of the store."""
    period, others = store.period or 1, [policy for policy in policies if policy is not store]
    grown = (_bytes(others, store, 2 * period) - _bytes(others, store, period)) / period
    return grown + (store.bytes_per_token if store in policies else 0)
