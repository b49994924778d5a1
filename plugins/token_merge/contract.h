// TokenMerge in C++: its contract, and the sizes that every form works with.
#pragma once

#include "common/contract.h"
#include "common/portable.h"

namespace trtc::token_merge
{

Contract const& contract();

//! Rows of the output.
template <typename Size>
Size rowsLeft(Size numTokens, int64_t numMerged)
{
    return numTokens - numMerged;
}

//! Rows of A are the unprotected even positions, rows of B the odd ones.
struct Sizes
{
    int64_t batch;
    int64_t numTokens;
    int64_t channels;
    int64_t width; //!< D, the width of a similarity feature
    int64_t numMerged;
    int64_t numProtected;
    bool bySimilarity; //!< order of the unmerged rows of A

    int64_t firstA() const noexcept
    {
        return numProtected + numProtected % 2;
    }

    int64_t firstB() const noexcept
    {
        return numProtected + 1 - numProtected % 2;
    }

    int64_t numA() const noexcept
    {
        return (numTokens - firstA() + 1) / 2;
    }

    int64_t numB() const noexcept
    {
        return (numTokens - firstB() + 1) / 2;
    }

    int64_t numOut() const noexcept
    {
        return rowsLeft(numTokens, numMerged);
    }

    //! Output row of the first row of B.
    int64_t outB() const noexcept
    {
        return numOut() - numB();
    }
};

Sizes sizesOf(Attributes const& attributes, Shapes const& inputs);

//! Whether a feature row of this length points anywhere. One of zeros, of what is no number, or with squares that
//! float32 does not hold has similarity 0 with every other.
TRTC_HOST_DEVICE inline bool hasDirection(float length)
{
    constexpr float kSHORTEST = 8.8817841970012523e-16F; // 2^-50: the squares of a shorter one lose their digits
    constexpr float kLONGEST = 18446744073709551616.0F;  // 2^64: the square is beyond float32
    return length >= kSHORTEST && length < kLONGEST;
}

} // namespace trtc::token_merge
