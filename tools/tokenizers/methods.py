"""The papers behind the tokenizer commands, for the table of the README."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerMethod:
    """What one paper does here.

    Attributes:
        command: As it is typed behind `trt-compress tokenizer`.
        summary: What it does, in a line.
        source: The paper, and the commit of its code.
        provenance: `official code read`, `paper` or `reconstruction`.
        implementation: The file, from the top of the repository.
    """

    command: str
    summary: str
    source: str
    provenance: str
    implementation: str


METHODS = (
    TokenizerMethod(
        command="encode --vocabulary-only",
        summary="encodes without a merge list: the longest piece each time, or the fewest pieces",
        source="Merge-list-free BPE inference, arXiv:2508.06621",
        provenance="paper",
        implementation="runtime/text/merge_free.py",
    ),
    TokenizerMethod(
        command="report",
        summary="premiums of languages over parallel texts, and the vocabulary size that a power law recommends",
        source="Crosslingual tokenizer inequities",
        provenance="paper",
        implementation="tools/tokenizers/power_law.py",
    ),
    TokenizerMethod(
        command="train --kind superbpe",
        summary="a second stage of merges across white space",
        source="SuperBPE, arXiv:2503.13423",
        provenance="reconstruction",
        implementation="tools/tokenizers/superbpe.py",
    ),
    TokenizerMethod(
        command="train --kind kl3m",
        summary="BPE for law and finance with custom tokens behind it; `kl3m-char`: pieces of three characters",
        source="KL3M tokenizers; code alea-institute/kl3m-tokenizers c0ce8be",
        provenance="official code read",
        implementation="tools/tokenizers/kl3m.py",
    ),
    TokenizerMethod(
        command="train --kind dna",
        summary="BPE over the bases of genomes",
        source="DNABERT-2",
        provenance="paper",
        implementation="tools/tokenizers/genome.py",
    ),
    TokenizerMethod(
        command="morphology",
        summary="parts Turkish into roots and suffixes whose forms share a number; measures what does not come back",
        source="Tokens with Meaning, arXiv:2508.14292; code malibayram/turkish-tokenizer 0f179b0",
        provenance="official code read",
        implementation="runtime/text/turkish/encode.py",
    ),
    TokenizerMethod(
        command="transplant",
        summary="gives a model another tokenizer: rows of embeddings for new tokens, made of old ones",
        source="TokenAdapt, arXiv:2505.09738; code Tinycompany-AI/tokenadapt 3f7ff1d",
        provenance="official code read",
        implementation="models/text/transplant.py",
    ),
    TokenizerMethod(
        command="equal-info",
        summary="encodes bytes in windows of equally many bits by a small model of bytes and a range coder, bit-exact",
        source="Equal-Info Windows, arXiv:2404.03626; no code",
        provenance="paper; the end of a window reconstructed",
        implementation="runtime/text/equal_info/windows.py",
    ),
)
