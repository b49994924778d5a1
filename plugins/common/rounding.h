// Rounding that gives the same integers on the CPU, on the GPU, in ONNX and in torch: to nearest, ties to even.
#pragma once

#include <cmath>

#include "common/portable.h"

namespace trtc
{

TRTC_HOST_DEVICE inline float roundHalfEven(float value)
{
    return rintf(value); // the rounding mode is the default one on both sides
}

TRTC_HOST_DEVICE inline float clamp(float value, float low, float high)
{
    return fminf(fmaxf(value, low), high);
}

} // namespace trtc
