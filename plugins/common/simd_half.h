// Vectors of floats from memory that holds another type.
#pragma once

#include "common/half.h"
#include "common/simd_math.h"

namespace trtc
{

inline FloatVector loadFloats(float const* from)
{
    return load(from);
}

inline FloatVector loadFloats(BFloat16 const* from)
{
    typedef uint16_t ShortVector __attribute__((vector_size(kLANES * 2)));
    ShortVector bits;
    std::memcpy(&bits, from, sizeof(bits));
    return (FloatVector)(__builtin_convertvector(bits, UnsignedVector) << 16U);
}

inline FloatVector loadFloats(Half const* from)
{
#if defined(__AVX512F__)
    __m256i packed;
    std::memcpy(&packed, from, sizeof(packed));
    return (FloatVector)_mm512_maskz_cvtph_ps(static_cast<__mmask16>(-1), packed);
#elif defined(__F16C__) && defined(__AVX__)
    return (FloatVector)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<__m128i const*>(from)));
#else
    float values[kLANES];
    toFloats(values, from, kLANES);
    return load(values);
#endif
}

} // namespace trtc
