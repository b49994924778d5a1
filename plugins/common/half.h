// float16 and bfloat16 on the host: storage types and conversions, single values and rows. Rounds to nearest, ties to
// even, and keeps infinities and NaN. Device code uses the types of cuda_common.cuh.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>
#if defined(__F16C__)
#include <immintrin.h>
#endif

#include "common/contract.h"

namespace trtc
{

struct Half
{
    uint16_t bits;
};

struct BFloat16
{
    uint16_t bits;
};

namespace detail
{
inline uint32_t bitsOf(float value)
{
    uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits;
}

inline float floatOf(uint32_t bits)
{
    float value = 0.0F;
    std::memcpy(&value, &bits, sizeof(value));
    return value;
}
} // namespace detail

inline float toFloat(float value)
{
    return value;
}

inline float toFloat(BFloat16 value)
{
    return detail::floatOf(static_cast<uint32_t>(value.bits) << 16U);
}

inline float toFloat(Half value)
{
#if defined(__F16C__)
    return _cvtsh_ss(value.bits);
#elif defined(__ARM_FP16_FORMAT_IEEE)
    __fp16 half;
    std::memcpy(&half, &value.bits, sizeof(half));
    return half;
#else
    uint32_t const sign = static_cast<uint32_t>(value.bits & 0x8000U) << 16U;
    uint32_t const exponent = (value.bits >> 10U) & 0x1fU;
    uint32_t const mantissa = value.bits & 0x3ffU;
    if (exponent == 0U) // zero or subnormal: mantissa * 2^-24, exact in float
    {
        float const magnitude = static_cast<float>(mantissa) * 5.9604644775390625e-8F;
        return sign != 0U ? -magnitude : magnitude;
    }
    uint32_t const wide = exponent == 0x1fU ? 0xffU : exponent + 112U;
    return detail::floatOf(sign | (wide << 23U) | (mantissa << 13U));
#endif
}

template <typename T>
T fromFloat(float value);

template <>
inline float fromFloat<float>(float value)
{
    return value;
}

template <>
inline BFloat16 fromFloat<BFloat16>(float value)
{
    uint32_t const bits = detail::bitsOf(value);
    uint32_t const rounded = (bits + 0x7fffU + ((bits >> 16U) & 1U)) >> 16U;
    bool const isNan = (bits & 0x7fffffffU) > 0x7f800000U;
    return {static_cast<uint16_t>(isNan ? (bits >> 16U) | 0x40U : rounded)};
}

template <>
inline Half fromFloat<Half>(float value)
{
#if defined(__F16C__)
    return {static_cast<uint16_t>(_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT))};
#elif defined(__ARM_FP16_FORMAT_IEEE)
    __fp16 const half = static_cast<__fp16>(value);
    Half result;
    std::memcpy(&result.bits, &half, sizeof(half));
    return result;
#else
    uint32_t const bits = detail::bitsOf(value);
    uint32_t const sign = (bits >> 16U) & 0x8000U;
    uint32_t const magnitude = bits & 0x7fffffffU;
    uint32_t half = 0;
    if (magnitude > 0x7f800000U)
    {
        half = 0x7e00U | ((magnitude >> 13U) & 0x3ffU);
    }
    else if (magnitude >= 0x477ff000U) // rounds to 65536 or more
    {
        half = 0x7c00U;
    }
    else if (magnitude < 0x38800000U) // subnormal: adding 0.5 lets the float unit round at 2^-24
    {
        half = detail::bitsOf(detail::floatOf(magnitude) + 0.5F) - detail::bitsOf(0.5F);
    }
    else
    {
        half = (magnitude - 0x38000000U + 0xfffU + ((magnitude >> 13U) & 1U)) >> 13U;
    }
    return {static_cast<uint16_t>(sign | half)};
#endif
}

template <typename T>
void toFloats(float* to, T const* from, int64_t count)
{
    if constexpr (std::is_same_v<T, float>)
    {
        std::copy(from, from + count, to);
        return;
    }
    int64_t i = 0;
#if defined(__F16C__) && defined(__AVX__)
    if constexpr (std::is_same_v<T, Half>)
    {
        for (; i + 8 <= count; i += 8)
        {
            __m128i const packed = _mm_loadu_si128(reinterpret_cast<__m128i const*>(from + i));
            _mm256_storeu_ps(to + i, _mm256_cvtph_ps(packed));
        }
    }
#endif
    for (; i < count; ++i)
    {
        to[i] = toFloat(from[i]);
    }
}

template <typename T>
void fromFloats(T* to, float const* from, int64_t count)
{
    if constexpr (std::is_same_v<T, float>)
    {
        std::copy(from, from + count, to);
        return;
    }
    int64_t i = 0;
#if defined(__F16C__) && defined(__AVX__)
    if constexpr (std::is_same_v<T, Half>)
    {
        for (; i + 8 <= count; i += 8)
        {
            __m128i const packed = _mm256_cvtps_ph(_mm256_loadu_ps(from + i), _MM_FROUND_TO_NEAREST_INT);
            _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i), packed);
        }
    }
#endif
    for (; i < count; ++i)
    {
        to[i] = fromFloat<T>(from[i]);
    }
}

template <typename T>
struct Tag
{
    using Type = T;
};

//! Calls body(Tag<T>{}) with the C++ type of a floating dtype.
template <typename Body>
auto dispatchFloat(DType dtype, Body const& body)
{
    switch (dtype)
    {
    case DType::kFLOAT16: return body(Tag<Half>{});
    case DType::kBFLOAT16: return body(Tag<BFloat16>{});
    default: return body(Tag<float>{});
    }
}

} // namespace trtc
