// Planar packing of codes of 8, 4 or 2 bits along an axis of D: the axis is split into 8 / bits equal parts, and byte j
// holds element j of every part, part i shifted by i * bits.
#pragma once

#include <cstdint>

#include "common/portable.h"

namespace trtc
{

TRTC_HOST_DEVICE constexpr int32_t partsOf(int32_t bits)
{
    return 8 / bits;
}

TRTC_HOST_DEVICE constexpr uint32_t largestCode(int32_t bits)
{
    return (1U << static_cast<uint32_t>(bits)) - 1U;
}

//! The code of part `part` in a byte.
TRTC_HOST_DEVICE constexpr uint32_t codeOf(uint32_t byte, int32_t part, int32_t bits)
{
    return (byte >> static_cast<uint32_t>(part * bits)) & largestCode(bits);
}

//! A code where part `part` of a byte has it; the byte is the sum over the parts.
TRTC_HOST_DEVICE constexpr uint32_t placed(uint32_t code, int32_t part, int32_t bits)
{
    return code << static_cast<uint32_t>(part * bits);
}

} // namespace trtc
