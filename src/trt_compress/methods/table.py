"""The list of all methods."""

from collections.abc import Mapping

from trt_compress.methods.audio import ATOME, FASTAST, FRAME_POOL, FRAME_STACK
from trt_compress.methods.cache import KIVI, PLAIN, SNAPKV
from trt_compress.methods.cache_heads import COMPRESSKV, EXPECTED, RAZORATTENTION
from trt_compress.methods.cache_readers import SCOUT, TIDALDECODE
from trt_compress.methods.cache_selectors import EMS, H2O, KEYDIFF, KNORM, PYRAMIDKV, RANDOM_KV, STREAMINGLLM, TOVA
from trt_compress.methods.cache_stores import GEAR, INT4, INT8, KVQUANT, ZIPCACHE
from trt_compress.methods.config import Method
from trt_compress.methods.connectors import LLAVA_MINI, QUECC, TOKENPACKER
from trt_compress.methods.crops import GLOBALCOM2
from trt_compress.methods.towers import (
    CDPRUNER,
    DART,
    DIVPRUNE,
    FOURIER,
    H_REDUCER,
    HIPRUNE,
    PIXEL_SHUFFLE,
    PRUMERGE,
    PRUMERGE_PLUS,
    RECOVERABLE,
    TOKEN_CORR,
    VISIONZIP,
)
from trt_compress.methods.video import STATIC_REUSE, TOC3D
from trt_compress.methods.vision import AVG_POOL, DIFFRATE, DYNAMICVIT, EVIT, RANDOM, TOKEN_TRANSFORM, TOME, VTC_CLS

_ALL = (
    *(TOME, EVIT, VTC_CLS, TOKEN_TRANSFORM, DIFFRATE, DYNAMICVIT, AVG_POOL, RANDOM),
    *(VISIONZIP, PRUMERGE, PRUMERGE_PLUS, TOKEN_CORR, HIPRUNE, DIVPRUNE, CDPRUNER, RECOVERABLE, DART, GLOBALCOM2),
    *(FOURIER, PIXEL_SHUFFLE, H_REDUCER),
    *(TOKENPACKER, QUECC, LLAVA_MINI),
    *(STATIC_REUSE, TOC3D, FASTAST, ATOME, FRAME_POOL, FRAME_STACK),
    *(RANDOM_KV, STREAMINGLLM, KNORM, KEYDIFF, TOVA, H2O, SNAPKV, PYRAMIDKV, EMS),
    *(EXPECTED, COMPRESSKV),
    *(RAZORATTENTION,),
    *(PLAIN, INT8, INT4, KIVI, GEAR, ZIPCACHE, KVQUANT),
    *(SCOUT, TIDALDECODE),
)

METHODS: Mapping[str, Method] = {method.name: method for method in _ALL}
"""Every method by its name in spec strings."""
