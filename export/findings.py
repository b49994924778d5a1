"""What preflight finds, and the record of it that travels in a bundle. Needs neither torch nor onnx."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from trt_compress.errors import BundleError
from trt_compress.foreign import reading, strict_json
from trt_compress.format.bundle import Bundle

PREFLIGHT_FILE = "preflight.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that a target refuses (`error`) or does differently from what the graph says (`warning`)."""

    severity: Literal["error", "warning"]
    rule: str
    node: str
    message: str
    fix: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What was found for a target when the bundle was exported, and the version whose rules found it."""

    version: str
    findings: tuple[Finding, ...]


def record_text(version: str, found: Mapping[str, Sequence[Finding]]) -> str:
    """The content of `preflight.json`: by target, what this version's rules found in all graphs of the bundle."""
    targets = {target: [asdict(finding) for finding in findings] for target, findings in found.items()}
    return json.dumps({"trt-compress": version, "targets": targets}, indent=2, ensure_ascii=False) + "\n"


def recorded_findings(bundle: Bundle, target: str) -> Recorded | None:
    """What the bundle says of a target, or None if it says nothing.

    Raises:
        BundleError: The record cannot be read.
    """
    if PREFLIGHT_FILE not in bundle.manifest.files:
        return None
    with reading(f"'{PREFLIGHT_FILE}' in the bundle '{bundle.path}'", "export the bundle again", error=BundleError):
        data = strict_json(bundle.read(PREFLIGHT_FILE))
        found = data["targets"].get(target)
        if found is None:
            return None
        if not all(isinstance(text, str) for finding in found for text in finding.values()):
            raise ValueError("a finding is made of texts")
        return Recorded(version=str(data["trt-compress"]), findings=tuple(Finding(**finding) for finding in found))
