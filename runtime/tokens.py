"""What a bundle's sites do to the tokens of one sample: the one statement that every table, page and plot makes.

A site's own numbers are of one group of tokens: a window, an image, a sample. The input of the first site and the
output of the last belong together only where each site takes what the one before left. Where the tokens that a site
does not compute are kept beside it, every site chooses from all of them anew.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from trt_compress.format.manifest import Compression, Dim


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenFlow:
    """The sites of one graph together, for one sample.

    Attributes:
        graph: Name of the graph; "" where the sites name none.
        tokens_in: Tokens of a sample before the first site; None: the sites do not say.
        tokens_out: Tokens behind the last site; where the rest is kept, the most that a site computes.
        fewest_out: The same; where the rest is kept, the fewest that a site computes.
        keeps_rest: The tokens that a site does not compute are kept beside it, none is removed.
        chain: Tokens before the first site and after each; empty where the sites are no chain.
        parts: Every different (groups, tokens of a group before, after), in order.
    """

    graph: str
    tokens_in: Dim | None
    tokens_out: Dim | None
    fewest_out: Dim | None
    keeps_rest: bool
    chain: tuple[Dim, ...]
    parts: tuple[tuple[int, Dim, Dim], ...]

    @property
    def text(self) -> str:
        """`65 → 25`; where the rest is kept `156–160 of 512`; where the sites are not told together, each."""
        if self.tokens_in is None:
            return ", ".join(f"{part_text(*part)} at a site" for part in self.parts)
        if not self.keeps_rest:
            return f"{self.tokens_in} → {self.tokens_out}"
        computed = self.tokens_out if self.tokens_out == self.fewest_out else f"{self.fewest_out}–{self.tokens_out}"
        return f"{computed} of {self.tokens_in}"

    @property
    def note(self) -> str:
        """What the text is of, in a few words."""
        if self.tokens_in is None:
            return "each site has a count of its own"
        if not self.keeps_rest:
            return "before the first site, and behind the last"
        grouped = [part_text(*part) for part in self.parts if part[0] > 1]
        return f"computed at a site, the rest is kept{': ' if grouped else ''}{', '.join(grouped)}"


def part_text(groups: int, before: Dim, after: Dim) -> str:
    """One kind of site: `39 of 128 in each of 4`."""
    return f"{after} of {before}" + (f" in each of {groups}" if groups > 1 else "")


def token_flows(sites: Sequence[Compression]) -> tuple[TokenFlow, ...]:
    """Put the sites of each graph together, without those of caches, where no token that passes is removed."""
    graphs: dict[str, list[Compression]] = {}
    for site in sites:
        if site.of_cache:
            continue
        graphs.setdefault(site.site.rpartition("/")[0], []).append(site)
    return tuple(_flow(graph, found) for graph, found in graphs.items())


def tokens_of_sample(sites: Sequence[Compression]) -> tuple[int, int] | None:
    """Tokens of a sample before and after, or those that there are and the most that a site computes.

    None where several graphs have sites, a count varies with the input, or the sites do not say.
    """
    flows = token_flows(sites)
    if len(flows) != 1 or not isinstance(flows[0].tokens_in, int) or not isinstance(flows[0].tokens_out, int):
        return None
    return flows[0].tokens_in, flows[0].tokens_out


def why_no_tokens(sites: Sequence[Compression]) -> str:
    """Why `tokens_of_sample` gives nothing."""
    flows = token_flows(sites)
    if not flows:
        return "what is compressed is a cache" if sites else "nothing compresses it"
    first, *more = flows
    if more:
        return f"several graphs are compressed ({', '.join(flow.graph for flow in flows)}); see the sites"
    if first.tokens_in is None:
        return "the sites have counts of their own; see them"
    return "the number varies with the input"


def tokens_text(sites: Sequence[Compression]) -> str | None:
    """All graphs in one line, and what is kept of caches; None without a site."""
    flows = token_flows(sites)
    said = [flow.text if len(flows) == 1 else f"{flow.graph}: {flow.text}" for flow in flows]
    caches = caches_text(sites)
    return "; ".join([*said, *([] if caches is None else [f"cache: {caches}"])]) or None


def caches_text(sites: Sequence[Compression]) -> str | None:
    """What is kept of the caches, and how: `keeps 1024 of 8192 entries, packed to 4 bits, in 30 layers`; None: no site
    is of a cache."""
    layers: dict[str, list[Compression]] = {}
    for site in sites:
        if site.of_cache:
            layers.setdefault(site.site, []).append(site)
    counts = Counter(_kept_text(found) for found in layers.values())
    parts = [f"{kept} in {count} layer{'s'[: count > 1]}" for kept, count in counts.items()]
    return f"keeps {'; '.join(parts)}" if parts else None


def _kept_text(sites: Sequence[Compression]) -> str:
    """What the policies of one layer keep: `256 of 8192 entries, packed to 4 bits,`."""
    first = sites[0]
    kept = next((site.tokens_out for site in sites if site.tokens_out != site.tokens_in), None)
    entries = f"all {first.tokens_in} entries" if kept is None else f"{kept} of {first.tokens_in} entries"
    bits = sorted({each for site in sites for each in site.bits})
    return entries + (f", packed to {' and '.join(map(str, bits))} bits," if bits else "")


def _flow(graph: str, sites: Sequence[Compression]) -> TokenFlow:
    parts = tuple(dict.fromkeys((site.groups, site.tokens_in, site.tokens_out) for site in sites))
    before: Dim | None
    after: Dim | None
    fewest: Dim | None
    if all(site.keeps_rest for site in sites):
        whole = {_total(site.tokens_in, site.groups, site.padding) for site in sites}
        outs = [_total(site.tokens_out, site.groups) for site in sites]
        numbers = [count for count in outs if isinstance(count, int)]
        before = whole.pop() if len(whole) == 1 else None
        if len(numbers) == len(outs):
            most = before if isinstance(before, int) else max(numbers)  # rows that fill up windows are no tokens
            after, fewest = min(max(numbers), most), min(*numbers, most)
        else:
            after = fewest = outs[0] if len(set(outs)) == 1 else None
        return TokenFlow(
            graph=graph,
            tokens_in=before if after is not None else None,
            tokens_out=after if before is not None else None,
            fewest_out=fewest if before is not None else None,
            keeps_rest=True,
            chain=(),
            parts=parts,
        )
    chained = all(
        (site.groups, site.tokens_out) == (after_it.groups, after_it.tokens_in)
        for site, after_it in zip(sites, sites[1:], strict=False)
    )
    counts = [_total(sites[0].tokens_in, sites[0].groups, sites[0].padding)]
    counts += [_total(site.tokens_out, site.groups, site.padding) for site in sites]
    return TokenFlow(
        graph=graph,
        tokens_in=counts[0] if chained else None,
        tokens_out=counts[-1] if chained else None,
        fewest_out=counts[-1] if chained else None,
        keeps_rest=False,
        chain=tuple(counts) if chained else (),
        parts=parts,
    )


def _total(count: Dim, groups: int, padding: int = 0) -> Dim:
    """Of all groups; of a count that varies, the symbol with its factor."""
    if isinstance(count, int):
        return count * groups - padding
    return count if groups == 1 else f"{groups} × {count}"
