// Vectors of the widest kind that the compiler was told of, written with the vector extensions of GCC and Clang: the
// same source serves AVX-512, AVX2, SSE2 and NEON.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace trtc
{

#if defined(__AVX512F__)
constexpr int32_t kLANES = 16;
#elif defined(__AVX__)
constexpr int32_t kLANES = 8;
#else
constexpr int32_t kLANES = 4;
#endif

typedef float FloatVector __attribute__((vector_size(kLANES * 4)));
typedef int32_t IntVector __attribute__((vector_size(kLANES * 4)));

inline FloatVector load(float const* from)
{
    FloatVector vector;
    std::memcpy(&vector, from, sizeof(vector));
    return vector;
}

inline void store(float* to, FloatVector const& vector)
{
    std::memcpy(to, &vector, sizeof(vector));
}

inline FloatVector broadcast(float value)
{
    return value - FloatVector{}; // not 0 + value: that is an instruction, as it turns -0 into +0
}

inline IntVector broadcast(int32_t value)
{
    return IntVector{} + value;
}

//! 0, 1, 2, …
inline IntVector lanes()
{
    IntVector vector{};
    for (int32_t i = 0; i < kLANES; ++i)
    {
        vector[i] = i;
    }
    return vector;
}

constexpr int64_t roundUp(int64_t value, int64_t multiple)
{
    return (value + multiple - 1) / multiple * multiple;
}

//! A product of two sizes, or `most` if it is larger: an empty tensor may have axes whose product is beyond any number.
constexpr int64_t productUpTo(int64_t most, int64_t one, int64_t other)
{
    return one > 0 && other > most / one ? most : one * other;
}

} // namespace trtc
