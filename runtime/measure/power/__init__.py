"""Power and energy of the rails of a machine: readers behind one interface, and the session that integrates them."""

from trt_compress.runtime.measure.power.open import open_reader
from trt_compress.runtime.measure.power.reader import PowerReader, RailSamples
from trt_compress.runtime.measure.power.session import PowerResult, PowerSession

__all__ = ["PowerReader", "PowerResult", "PowerSession", "RailSamples", "open_reader"]
