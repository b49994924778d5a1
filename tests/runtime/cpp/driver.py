"""Does the jobs of a folder through the C interface: `python -m tests.runtime.cpp.driver FOLDER`, see `driving.py`."""

import ctypes
import json
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np

from tests.runtime.cpp.interface import NAMES, Interface, Refused, Tensor, numbers, tensors

Array = np.ndarray[Any, np.dtype[Any]]
Arrays = dict[str, Array]


def run(c: Interface, job: dict[str, Any], given: Arrays) -> tuple[dict[str, Any], Arrays]:
    """Runs in turn, on the arrays `STEP.input`; gives `STEP.output` and the states behind each step."""
    found: Arrays = {}
    options = {"native_library": job["native"]} if job.get("native") else {}
    with c.session(job["bundle"], threads=1, **options) as session, c.made("states", session) as states:
        names = list(c.infos(session, "output"))
        held = list(c.infos(session, "state"))
        addresses: dict[str, list[int]] = {name: [] for name in held}
        for step in range(job["steps"]):
            prefix = f"{step}."
            inputs = {key.removeprefix(prefix): value for key, value in given.items() if key.startswith(prefix)}
            for name, value in c.run(states, inputs, names).items():
                found[f"{step}.{name}"] = value
            for name in held:
                addresses[name].append(c.c.trtc_states_data(states, name.encode()))
            for name in held if step in (0, 1, job["steps"] - 1) else ():
                value = c.value(states, name)
                assert value is not None
                found[f"{step}.state.{name}"] = value
        said = {
            "inputs": list(c.infos(session, "input")),
            "outputs": names,
            "addresses": addresses,
            "digest": c.c.trtc_session_digest(session).decode(),
            "version": c.c.trtc_session_backend_version(session).decode(),
        }
    return said, found


def replay(c: Interface, job: dict[str, Any], given: Arrays) -> tuple[dict[str, Any], Arrays]:
    """A conformance case: what its actions gave, as `NUMBER.logits`, and what differs in `seen`."""
    folder = Path(job["case"])
    case, arrays = json.loads((folder / "case.json").read_text()), np.load(folder / "expected.npz")
    found: Arrays = {}
    differs: list[str] = []
    with (
        c.session(str(folder / case["bundle"])) as session,
        c.made("sequences", session, batch=case["batch"]) as sequences,
    ):
        for number, action in enumerate(case["actions"]):
            before = _seen(c, sequences)
            do = action["do"]
            if do == "attend":
                inputs = {name: np.ascontiguousarray(arrays[key]) for name, key in action["inputs"].items()}
                size = ctypes.c_size_t(len(inputs))
                c.check(c.c.trtc_sequences_attend(sequences, tensors(inputs), size))
            elif do == "keep":
                rows = np.array(action["rows"], np.uintp)
                pointer = ctypes.c_void_p(rows.ctypes.data)
                c.check(c.c.trtc_sequences_keep(sequences, pointer, ctypes.c_size_t(len(rows))))
            else:
                try:
                    found[f"{number}.logits"] = _read(c, sequences, action)
                except Refused as error:
                    if do != "refuse":
                        raise
                    found[f"{number}.refused"] = np.array(error.status)
                    differs += [] if before == _seen(c, sequences) else [f"{number}: it was read"]
                    continue
            if "seen" in action and action["seen"] != _seen(c, sequences):
                differs.append(f"{number}: seen is {_seen(c, sequences)}")
            states = ctypes.c_void_p(c.c.trtc_sequences_states(sequences))
            for name in action.get("states", {}):
                value = c.value(states, name)
                if value is None:
                    differs.append(f"{number}: there is no state {name}")
                else:
                    found[f"{number}.state.{name}"] = value
    return {"differs": differs}, found


def refuse(c: Interface, job: dict[str, Any], given: Arrays) -> tuple[dict[str, Any], Arrays]:
    """Open a bundle, and run it where inputs are given."""
    with c.session(job["bundle"], **job.get("options", {})) as session:
        with c.made("states", session, **job.get("states", {})) as states:
            if given:
                c.run(
                    states, given, job.get("outputs", list(c.infos(session, "output"))), most=job.get("most", 1 << 20)
                )
    return {}, {}


def misuse(c: Interface, job: dict[str, Any], given: Arrays) -> tuple[dict[str, Any], Arrays]:
    """Calls that no program should make: each gives a status and a sentence."""
    said: dict[str, Any] = {}

    def note(name: str, status: int) -> None:
        said[name] = [status, c.c.trtc_last_error().decode()]

    none, handle = ctypes.c_void_p(), ctypes.c_void_p()
    note("no path", c.c.trtc_session_open(None, None, ctypes.byref(handle)))
    note("no session", c.c.trtc_states_new(None, None, ctypes.byref(handle)))
    note("no states", c.c.trtc_run(None, None, ctypes.c_size_t(0), None, ctypes.c_size_t(0)))
    note("no sequences", c.c.trtc_sequences_step(None, None, None, None))
    for name in ("session", "states", "sequences"):
        getattr(c.c, f"trtc_{name}_free")(ctypes.byref(none))
        getattr(c.c, f"trtc_{name}_free")(None)
    said["null counts"] = [c.c.trtc_session_num_inputs(None), c.c.trtc_sequences_count(None)]
    with c.session(job["bundle"]) as session:
        info, tensor = ctypes.create_string_buffer(512), tensors(given)
        note("no info", c.c.trtc_session_input(session, ctypes.c_size_t(0), None))
        note("index", c.c.trtc_session_input(session, ctypes.c_size_t(99), info))
        data, size = ctypes.c_void_p(), ctypes.c_size_t()
        note("file", c.c.trtc_session_read_file(session, b"../secret", ctypes.byref(data), ctypes.byref(size)))
        with c.made("states", session) as states:
            one, no = ctypes.c_size_t(1), ctypes.c_size_t(0)
            note("no inputs", c.c.trtc_run(states, None, one, None, no))
            note("input missing", c.c.trtc_run(states, None, no, None, no))
            tensor[0].dtype = 77
            note("dtype", c.c.trtc_run(states, tensor, one, None, no))
            tensor[0].dtype, tensor[0].rank = NAMES.index("float32"), 9
            note("rank", c.c.trtc_run(states, tensor, one, None, no))
            tensor = tensors(given)
            tensor[0].bytes -= 1
            note("bytes", c.c.trtc_run(states, tensor, one, None, no))
            tensor[0].bytes, tensor[0].data = 1 << 30, None
            note("data", c.c.trtc_run(states, tensor, one, None, no))
            tensor = tensors(given)
            tensor[0].shape[0] = -1
            note("shape", c.c.trtc_run(states, tensor, one, None, no))
            tensor[0].shape[0] = 2**62
            note("huge", c.c.trtc_run(states, tensor, one, None, no))
            small = np.zeros(1, np.uint8)
            taken = (Tensor * 1)(Tensor(name=job["output"].encode(), data=small.ctypes.data, bytes=1))
            note("small", c.c.trtc_run(states, tensors(given), one, taken, one))
            note("unknown", c.c.trtc_run(states, tensors({"nonsense": small}), one, None, no))
            said["clashes"] = _two_threads(c, states, given)
            c.c.trtc_session_free(ctypes.byref(session))
            note("closed", c.c.trtc_run(states, tensors(given), one, None, no))
    return said, {}


def lose(c: Interface, job: dict[str, Any], given: Arrays) -> tuple[dict[str, Any], Arrays]:
    """A run that fails in the midst: what each call says behind it, and that a reset begins anew."""
    good = {name.removeprefix("good."): value for name, value in given.items() if name.startswith("good.")}
    bad = {**good, **{name.removeprefix("bad."): value for name, value in given.items() if name.startswith("bad.")}}
    said: dict[str, Any] = {}
    with c.session(job["bundle"], native_library=job["native"], threads=1) as session:
        names = list(c.infos(session, "output"))
        with c.made("states", session) as states:
            first = c.run(states, good, names)
            handle, rows = ctypes.c_void_p(), np.zeros(1, np.uintp)
            for name, call in {
                "bad": lambda: c.run(states, bad, names),
                "next": lambda: c.run(states, good, names),
                "fork": lambda: c.check(c.c.trtc_states_fork(states, ctypes.byref(handle))),
                "keep": lambda: c.check(c.c.trtc_states_keep(states, ctypes.c_void_p(rows.ctypes.data), 1)),
            }.items():
                try:
                    call()
                    said[name] = [0, ""]
                except Refused as error:
                    said[name] = [error.status, error.message]
            c.check(c.c.trtc_states_reset(states))
            again = c.run(states, good, names)
            said["again"] = all(first[name].tobytes() == again[name].tobytes() for name in names)
        with c.made("states", session) as states:  # what was not there before is not lost
            try:
                c.run(states, bad, names)
                said["fresh"] = "it ran"
            except Refused:
                again = c.run(states, good, names)
                said["fresh"] = all(first[name].tobytes() == again[name].tobytes() for name in names)
    return said, {}


def tokenize(c: Interface, job: dict[str, Any], given: Arrays) -> tuple[dict[str, Any], Arrays]:
    """Tokens of texts, texts of tokens, and what is given out as these come."""
    content = Path(job["tokenizer"]).read_bytes()
    said: dict[str, Any] = {}
    with c.handle("tokenizer", content, ctypes.c_size_t(len(content)), made="read") as tokenizer:
        said["size"] = c.c.trtc_tokenizer_size(tokenizer)
        said["tokens"] = [c.encode(tokenizer, text) for text in job.get("texts", ())]
        said["plain"] = [c.encode(tokenizer, text, special=False) for text in job.get("plain", ())]
        said["texts"] = [c.decode(tokenizer, tokens) for tokens in job.get("tokens", ())]
        said["pieces"] = [c.pieces(tokenizer, tokens, before) for before, tokens in job.get("pieces", ())]
    return said, {}


def generate(c: Interface, job: dict[str, Any], given: Arrays) -> tuple[dict[str, Any], Arrays]:
    """Answers to prompts, each with settings of its own."""
    with c.session(job["bundle"], threads=1) as session:
        if job.get("text", True):
            with c.handle("tokenizer", session, made="open") as tokenizer:
                return {"answers": [c.generate(session, tokenizer, **each) for each in job["answers"]]}, {}
        return {"answers": [c.generate(session, None, **each) for each in job["answers"]]}, {}


def summarize(c: Interface, job: dict[str, Any], given: Arrays) -> tuple[dict[str, Any], Arrays]:
    """Latencies, summed up."""
    text, size = ctypes.c_void_p(), ctypes.c_size_t()
    where, found = (ctypes.byref(text), ctypes.byref(size)), []
    for samples in job["samples"]:
        c.check(c.c.trtc_latency_summary(*numbers(samples), *where))
        found.append(json.loads(ctypes.string_at(text, size.value)))
        c.c.trtc_bytes_free(ctypes.byref(text))
    none = c.c.trtc_latency_summary(None, ctypes.c_size_t(0), *where)
    return {"summaries": found, "none": [none, c.c.trtc_last_error().decode()]}, {}


def _two_threads(c: Interface, states: Any, given: Arrays) -> list[int]:
    """Statuses of many runs by two threads on the same states."""
    statuses: list[int] = []

    def work() -> None:
        for _ in range(200):
            none = ctypes.c_size_t(0)
            statuses.append(c.c.trtc_run(states, tensors(given), ctypes.c_size_t(1), None, none))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sorted(set(statuses))


def _seen(c: Interface, sequences: Any) -> list[int]:
    count = c.c.trtc_sequences_count(sequences)
    found = np.zeros(count, np.int64)
    c.check(c.c.trtc_sequences_seen(sequences, ctypes.c_void_p(found.ctypes.data), ctypes.c_size_t(count)))
    return [int(one) for one in found]


def _read(c: Interface, sequences: Any, action: dict[str, Any]) -> Array:
    batch, columns = c.c.trtc_sequences_count(sequences), c.c.trtc_sequences_vocabulary(sequences)
    found = np.full((batch, columns), np.nan, np.float32)
    logits = Tensor(data=found.ctypes.data, bytes=found.nbytes)
    if action["do"] == "step":
        tokens = np.array(action["tokens"], np.int64)
        ended = np.array(action["ended"], np.uint8) if action.get("ended") else None
        over = ctypes.c_void_p(None if ended is None else ended.ctypes.data)
        pointer = ctypes.c_void_p(tokens.ctypes.data)
        c.check(c.c.trtc_sequences_step(sequences, pointer, over, ctypes.byref(logits)))
        return found
    texts = [np.array(text, np.int64) for text in action["tokens"]]
    pointers = (ctypes.c_void_p * batch)(*[text.ctypes.data for text in texts])
    lengths = np.array([len(text) for text in texts], np.uintp)
    size = ctypes.c_void_p(lengths.ctypes.data)
    c.check(c.c.trtc_sequences_read(sequences, pointers, size, ctypes.byref(logits)))
    return found


JOBS = {
    **{"run": run, "replay": replay, "refuse": refuse, "misuse": misuse},
    **{"tokenize": tokenize, "generate": generate, "summarize": summarize, "lose": lose},
}


def main(folder: Path) -> None:
    """Do them all."""
    said = json.loads((folder / "jobs.json").read_text())
    c = Interface(Path(said["library"]), Path(said["onnxruntime"]))
    for number, job in enumerate(said["jobs"]):
        with np.load(folder / f"{number}.in.npz") as arrays:
            given = {key: np.ascontiguousarray(arrays[key]) for key in arrays}
        try:
            told, found = JOBS[job["do"]](c, job, given)
        except Refused as error:
            told, found = {"status": error.status, "message": error.message}, {}
        np.savez(folder / f"{number}.out.npz", allow_pickle=False, **found)
        (folder / f"{number}.out.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
