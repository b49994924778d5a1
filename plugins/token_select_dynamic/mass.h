// Scores as whole numbers of a unit that fits the largest of them: their sums do not depend on the order of addition,
// so that the CPU and the GPU, with any number of threads, find the same number of tokens.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "common/portable.h"

namespace trtc::token_select_dynamic
{

//! Bits of a mass below those of the score itself. 39 bits a mass and the 24 bits of kMOST_TOKENS add up in 63.
constexpr uint32_t kEXTRA_BITS = 15;

TRTC_HOST_DEVICE inline uint32_t bitsOf(float score)
{
    uint32_t bits = 0;
    memcpy(&bits, &score, sizeof(bits));
    return bits;
}

//! The exponent of a score as its bits hold it, 1 to 255; negative scores have no mass.
TRTC_HOST_DEVICE inline uint32_t exponentOf(float score)
{
    uint32_t const bits = bitsOf(score);
    uint32_t const exponent = (bits >> 23U) & 0xffU;
    return (bits & 0x80000000U) != 0U || exponent == 0U ? 1U : exponent;
}

//! `score` in units of the last place of a mass with the exponent `largest`; what is smaller than a unit is cut off.
TRTC_HOST_DEVICE inline uint64_t massOf(float score, uint32_t largest)
{
    uint32_t const bits = bitsOf(score);
    uint32_t const shift = largest - exponentOf(score);
    if ((bits & 0x80000000U) != 0U || shift > 38U)
    {
        return 0U;
    }
    uint32_t const implicit = (bits & 0x7f800000U) != 0U ? 0x800000U : 0U;
    return (static_cast<uint64_t>((bits & 0x7fffffU) | implicit) << kEXTRA_BITS) >> shift;
}

//! The mass that must be reached, rounded as the product of float32 numbers that the contract speaks of.
TRTC_HOST_DEVICE inline uint64_t wantedMass(uint64_t total, float share)
{
    return static_cast<uint64_t>(ceilf(static_cast<float>(total) * share));
}

} // namespace trtc::token_select_dynamic
