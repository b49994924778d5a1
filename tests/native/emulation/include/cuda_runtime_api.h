// Found instead of CUDA's own: TensorRT's headers and plugin sources include it by this name.
#pragma once

#include "cuda_emulation.h"
