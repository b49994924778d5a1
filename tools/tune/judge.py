"""How far the answers of a compressed model are from dense's, in PyTorch: what a search makes small beside latency."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from trt_compress.errors import ConfigError, UnsupportedError
from trt_compress.methods import parse_spec
from trt_compress.models.hosts.base import GraphSpec, LoadedHost
from trt_compress.runtime.labelled.data import BadSample, LabelledData
from trt_compress.tools.tune.schedule import Shape

if TYPE_CHECKING:
    from trt_compress.runtime.evaluate import Classifier

_AT_ONCE = 16


def only_graph(host: LoadedHost, spec: str = "none") -> GraphSpec:
    """The one graph of a model.

    Raises:
        UnsupportedError: It has several, or states.
        ConfigError: The compressors do not fit.
    """
    graphs = host.attach(parse_spec(spec))
    if len(graphs) != 1 or graphs[0].states or host.procedure is not None:
        raise UnsupportedError(
            f"{host.source} has {'states' if len(graphs) == 1 else 'several graphs'}, and tune searches models of one "
            "graph without states; `trt-compress sweep` measures settings of it."
        )
    return graphs[0]


def shape_of(host: LoadedHost) -> Shape:
    """Tokens, prefix and layers of a model.

    Raises:
        UnsupportedError: It has no layers in a row, or `random` does not act in them, so that nothing could be held
            against it.
    """
    layers = only_graph(host).layers
    if layers is None:
        raise UnsupportedError(f"{host.source} has no layers in a row; `trt-compress sweep` measures settings of it.")
    try:
        (site,) = only_graph(host, "random:keep_ratio=0.000001,layers=[0]").module.plan  # one patch is left
    except (ConfigError, ValueError) as error:
        raise UnsupportedError(
            f"{host.source}: random cannot stand beside a method here ({error}); `trt-compress sweep` measures "
            "settings of it."
        ) from None
    assert isinstance(site.tokens_in, int) and isinstance(site.tokens_out, int)
    return Shape(tokens=site.tokens_in, prefix=site.tokens_out - 1, layers=layers.count)


class Judge:
    """Compares a model with compressors with dense on the same samples.

    Of classes the distance is the divergence of the two answers (Kullback and Leibler's, in nats), of other outputs 1
    less the mean cosine: both say more with few samples than a count of equal answers.

    Args:
        host: The model.
        data: The samples, of which those that can be read are taken.
        classifier: Where its classes are; None: it has none.
    """

    def __init__(self, host: LoadedHost, data: LabelledData, classifier: "Classifier | None") -> None:
        self._host, graph = host, only_graph(host)
        self._place = 0
        if classifier is not None:
            self._place = [spec.name for spec in graph.outputs].index(classifier.output)
        self._classes = classifier is not None
        runs, labels = [], []
        for sample in data.samples:
            try:
                runs.append(sample.load()[-1])
            except BadSample:
                continue
            labels.append(-1 if sample.label is None else sample.label)
        if not runs:
            raise ConfigError(f"No sample of '{data.source}' could be read; look at them with `trt-compress evaluate`.")
        self._inputs = [torch.cat([torch.from_numpy(run[spec.name]) for run in runs]) for spec in graph.inputs]
        self.samples = len(runs)
        self._labels = torch.tensor(labels)
        self._dense = self._answers(graph)

    def distance(self, spec: str) -> float:
        """How far the answers with compressors are from dense's.

        Raises:
            ConfigError, UnsupportedError: They do not fit the model.
        """
        answers = self._answers(only_graph(self._host, spec))
        if not torch.isfinite(answers).all():
            raise ConfigError(f"{spec}: answers are not finite.")
        if self._classes:
            ours, theirs = answers.log_softmax(dim=1), self._dense.log_softmax(dim=1)
            return float((theirs.exp() * (theirs - ours)).sum(dim=1).mean())
        if answers.shape != self._dense.shape:
            answers, dense = answers.mean(dim=1), self._dense.mean(dim=1)  # fewer tokens come out: their means
        else:
            dense = self._dense
        return float(1 - torch.nn.functional.cosine_similarity(answers.flatten(1), dense.flatten(1), dim=1).mean())

    def drop_points(self, spec: str) -> float:
        """Points lost on these samples: of accuracy, without labels of agreement with dense, else of the mean cosine.

        Raises:
            ConfigError, UnsupportedError: They do not fit the model.
        """
        if not self._classes:
            return 100 * self.distance(spec)
        ours, theirs = self._answers(only_graph(self._host, spec)).argmax(dim=1), self._dense.argmax(dim=1)
        known = self._labels >= 0
        if known.any():
            wanted = self._labels[known]
            lost = (theirs[known] == wanted).sum() - (ours[known] == wanted).sum()
            return 100 * float(lost) / int(known.sum())
        return 100 * float((ours != theirs).double().mean())

    def _answers(self, graph: GraphSpec) -> Tensor:
        found: list[Tensor] = []
        module: Any = graph.module.eval()
        with torch.no_grad():
            for start in range(0, self.samples, _AT_ONCE):
                given = module(*(tensor[start : start + _AT_ONCE] for tensor in self._inputs))
                outputs: Sequence[Tensor] = (given,) if isinstance(given, Tensor) else given
                found.append(outputs[self._place].double())
        return torch.cat(found)
