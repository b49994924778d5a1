// Arithmetic on the vectors of simd.h: exponentials, sums across lanes, codes to numbers, roundings that stay apart.
#pragma once

#include <utility>
#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "common/simd.h"

namespace trtc
{

typedef uint8_t ByteVector __attribute__((vector_size(kLANES)));
typedef uint32_t UnsignedVector __attribute__((vector_size(kLANES * 4)));

//! The bits of a vector as integers, and back.
inline IntVector bitsOf(FloatVector const& vector)
{
    return (IntVector)vector;
}

inline FloatVector floatsOf(IntVector const& vector)
{
    return (FloatVector)vector;
}

//! `yes` where the mask (a comparison of vectors) holds, else `no`.
inline FloatVector select(IntVector const& mask, FloatVector const& yes, FloatVector const& no)
{
    return floatsOf((mask & bitsOf(yes)) | (~mask & bitsOf(no)));
}

inline FloatVector larger(FloatVector const& a, FloatVector const& b)
{
    return a > b ? a : b;
}

inline FloatVector smaller(FloatVector const& a, FloatVector const& b)
{
    return a < b ? a : b;
}

//! The next whole number, half to even, for values within +-2^22.
inline FloatVector roundHalfEven(FloatVector const& value)
{
    FloatVector const magic = broadcast(12582912.0F); // 1.5 * 2^23: sums have no fraction
    return (value + magic) - magic;
}

//! A result that the compiler must round as it stands, and not carry into a multiply-add.
template <typename T>
inline T unfused(T value)
{
#if defined(__x86_64__) || defined(__i386__)
    __asm__("" : "+x"(value));
#elif defined(__aarch64__)
    __asm__("" : "+w"(value));
#else
    __asm__("" : "+m"(value));
#endif
    return value;
}

//! e to the power of each value, which is at most 0; 0 below -87. Right to about 2 units of the last place.
inline FloatVector exponential(FloatVector const& value)
{
    FloatVector const lowest = broadcast(-87.0F);
    FloatVector const bounded = larger(value, lowest);
    FloatVector const power = roundHalfEven(bounded * 1.44269504F);
    FloatVector const rest = (bounded - power * 0.693359375F) + power * 2.12194440e-4F; // ln 2 in two parts
    FloatVector sum = broadcast(1.9875691500e-4F);
    sum = sum * rest + 1.3981999507e-3F;
    sum = sum * rest + 8.3334519073e-3F;
    sum = sum * rest + 4.1665795894e-2F;
    sum = sum * rest + 1.6666665459e-1F;
    sum = sum * rest + 5.0000001201e-1F;
    sum = sum * (rest * rest) + rest + 1.0F;
    // Unsigned, so that what is above 0 (beside a NaN that hides the largest of a row) wraps around and is no overflow.
    auto const exponent = (UnsignedVector) __builtin_convertvector(power, IntVector);
    auto const bits = (IntVector)((UnsignedVector)bitsOf(sum) + (exponent << 23U));
    return floatsOf(bits & (value >= lowest));
}

//! The hyperbolic tangent, right to about 2^-22 of its largest value.
inline FloatVector hyperbolicTangent(FloatVector const& value)
{
    FloatVector const size = larger(value, -value);
    FloatVector const power = exponential(size * -2.0F);
    FloatVector const result = (1.0F - power) / (1.0F + power);
    return select(value < FloatVector{}, -result, result);
}

namespace detail
{
//! Lanes with bit kBIT unset hold two lanes of a summed, the others two of b.
template <int32_t kBIT, size_t... kLANE>
inline FloatVector sumPairs(FloatVector const& a, FloatVector const& b, std::index_sequence<kLANE...> /*lanes*/)
{
#if defined(__clang__)
    FloatVector const own = __builtin_shufflevector(a, b, ((kLANE & kBIT) != 0 ? kLANES + kLANE : kLANE)...);
    FloatVector const other =
        __builtin_shufflevector(a, b, ((kLANE & kBIT) != 0 ? kLANES + (kLANE ^ kBIT) : (kLANE ^ kBIT))...);
#else
    IntVector const mine{static_cast<int32_t>((kLANE & kBIT) != 0 ? kLANES + kLANE : kLANE)...};
    IntVector const others{static_cast<int32_t>((kLANE & kBIT) != 0 ? kLANES + (kLANE ^ kBIT) : (kLANE ^ kBIT))...};
    FloatVector const own = __builtin_shuffle(a, b, mine);
    FloatVector const other = __builtin_shuffle(a, b, others);
#endif
    return own + other;
}

template <int32_t kBIT>
inline FloatVector sumTree(FloatVector const* vectors)
{
    if constexpr (kBIT == 0)
    {
        return *vectors;
    }
    else
    {
        // Of 2 * kBIT vectors: those of the first half end in lanes whose bit is unset.
        return sumPairs<kBIT>(
            sumTree<kBIT / 2>(vectors), sumTree<kBIT / 2>(vectors + kBIT), std::make_index_sequence<kLANES>{});
    }
}
} // namespace detail

//! Lane i is the sum over the lanes of vector i, of kLANES vectors.
inline FloatVector sumsOf(FloatVector const* vectors)
{
    return detail::sumTree<kLANES / 2>(vectors);
}

namespace detail
{
//! Lanes with bit kBIT set of `a` against the others of `b`.
template <int32_t kBIT, size_t... kLANE>
inline void exchange(FloatVector& a, FloatVector& b, std::index_sequence<kLANE...> /*lanes*/)
{
    FloatVector const one = a;
#if defined(__clang__)
    a = __builtin_shufflevector(one, b, ((kLANE & kBIT) != 0 ? kLANES + (kLANE ^ kBIT) : kLANE)...);
    b = __builtin_shufflevector(one, b, ((kLANE & kBIT) != 0 ? kLANES + kLANE : (kLANE ^ kBIT))...);
#else
    IntVector const low{static_cast<int32_t>((kLANE & kBIT) != 0 ? kLANES + (kLANE ^ kBIT) : kLANE)...};
    IntVector const high{static_cast<int32_t>((kLANE & kBIT) != 0 ? kLANES + kLANE : (kLANE ^ kBIT))...};
    a = __builtin_shuffle(one, b, low);
    b = __builtin_shuffle(one, b, high);
#endif
}

template <int32_t kBIT>
inline void turnBit(FloatVector* vectors)
{
#pragma GCC unroll 16
    for (int32_t i = 0; i < kLANES; ++i)
    {
        if ((i & kBIT) == 0)
        {
            exchange<kBIT>(vectors[i], vectors[i + kBIT], std::make_index_sequence<kLANES>{});
        }
    }
    if constexpr (kBIT > 1)
    {
        turnBit<kBIT / 2>(vectors);
    }
}
} // namespace detail

//! Of kLANES vectors: lane j of vector i becomes lane i of vector j.
inline void transpose(FloatVector* vectors)
{
    detail::turnBit<kLANES / 2>(vectors);
}

inline float sumOf(FloatVector const& vector)
{
    float sum = 0.0F;
    for (int32_t lane = 0; lane < kLANES; ++lane)
    {
        sum += vector[lane];
    }
    return sum;
}

//! The sum of the lanes by quarters: quicker than one after another, and rounded otherwise.
inline float sumByQuarters(FloatVector const& vector)
{
    typedef float Quarter __attribute__((vector_size(16)));
    Quarter parts[kLANES / 4];
    std::memcpy(parts, &vector, sizeof(vector));
#pragma GCC unroll 4
    for (int32_t i = 1; i < kLANES / 4; ++i)
    {
        parts[0] += parts[i];
    }
    return (parts[0][0] + parts[0][2]) + (parts[0][1] + parts[0][3]);
}

inline float largestByQuarters(FloatVector const& vector)
{
    typedef float Quarter __attribute__((vector_size(16)));
    Quarter parts[kLANES / 4];
    std::memcpy(parts, &vector, sizeof(vector));
#pragma GCC unroll 4
    for (int32_t i = 1; i < kLANES / 4; ++i)
    {
        parts[0] = parts[i] > parts[0] ? parts[i] : parts[0];
    }
    float const even = parts[0][2] > parts[0][0] ? parts[0][2] : parts[0][0];
    float const odd = parts[0][3] > parts[0][1] ? parts[0][3] : parts[0][1];
    return odd > even ? odd : even;
}

inline float largestOf(FloatVector const& vector)
{
    float largest = vector[0];
    for (int32_t lane = 1; lane < kLANES; ++lane)
    {
        largest = vector[lane] > largest ? vector[lane] : largest;
    }
    return largest;
}

//! kLANES bytes as integers.
inline IntVector widened(ByteVector const& bytes)
{
#if defined(__AVX512F__)
    return (IntVector)_mm512_maskz_cvtepu8_epi32(static_cast<__mmask16>(-1), (__m128i)bytes);
#elif defined(__AVX2__)
    __m128i packed = _mm_setzero_si128();
    std::memcpy(&packed, &bytes, sizeof(bytes));
    return (IntVector)_mm256_cvtepu8_epi32(packed);
#else
    return __builtin_convertvector(bytes, IntVector);
#endif
}

inline IntVector loadBytes(uint8_t const* from)
{
    ByteVector bytes;
    std::memcpy(&bytes, from, sizeof(bytes));
    return widened(bytes);
}

//! The first `count` of kLANES bytes, zeros behind them.
inline IntVector loadBytes(uint8_t const* from, int64_t count)
{
    ByteVector bytes{};
    std::memcpy(&bytes, from, static_cast<size_t>(count));
    return widened(bytes);
}

} // namespace trtc
