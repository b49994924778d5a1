"""Hostile calls of a native library, in a process of their own: `-m tests.attack.hostile_worker LIBRARY SEED COUNT`.

Every third call is lawful, with hostile values; the others break values, shapes or attributes. The last line is JSON:
how many calls there were, how many ran, and how many were refused by a sentence of the operator or otherwise.
"""

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from tests.attack.calls import ATTRIBUTES, INPUTS, NAMES, broken_attributes, broken_call, lawful_call, one, types_of
from tests.attack.sessions import Sessions

OF_ONE_SESSION = 8


def main(library: Path, seed: int, count: int) -> None:
    described: dict[str, Any] = json.loads(library.with_suffix(".json").read_text(encoding="utf-8"))
    contracts = {contract["name"]: contract for contract in described["operators"]}
    assert set(contracts) == set(NAMES) == set(INPUTS) == set(ATTRIBUTES)
    random = np.random.default_rng(seed)
    one_thread, many = (Sessions(contracts, library, threads=threads, arena=False) for threads in (1, 3))
    seen: Counter[str] = Counter()
    examples: dict[str, str] = {}
    while seen["calls"] < count:
        name = NAMES[seen["sessions"] % len(NAMES)]
        seen["sessions"] += 1
        lawful = ATTRIBUTES[name](random)
        attributes = broken_attributes(random, lawful) if random.random() < 0.25 else lawful
        types = types_of(random, name)
        sessions = one(random, (one_thread, many))
        for number in range(min(OF_ONE_SESSION, count - seen["calls"])):
            call = lawful_call(random, name, lawful, types)
            call = type(call)(name=name, attributes=attributes, inputs=call.inputs, dtypes=types)
            call = broken_call(random, call) if number % 3 else call
            seen["calls"] += 1
            try:
                sessions.run(call)
                seen["ran"] += 1
            except Exception as error:  # ONNX Runtime's exceptions have no common base
                said = f"{call.op_type}: " in str(error)
                seen["refused" if said else "otherwise"] += 1
                if not said:
                    examples.setdefault(f"{name} {str(error)[-160:]}", repr(attributes))
    print(json.dumps({**seen, "examples": examples}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
