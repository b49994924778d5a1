// TokenSelect in C++: its contract, and the sizes that every form works with.
#pragma once

#include "common/contract.h"

namespace trtc::token_select
{

Contract const& contract();

template <typename Size>
Size rowsOut(Size numKept, bool fuse)
{
    return numKept + (fuse ? 1 : 0);
}

template <typename Size>
Size rowsLeft(Size numTokens, Size numKept)
{
    return numTokens - numKept;
}

struct Sizes
{
    int64_t batch;
    int64_t numTokens;
    int64_t channels;
    int64_t numKept;
    bool byScore;                //!< order of the kept tokens: by descending score, the forced ones first
    bool fuse;                   //!< one more token: the sum of score * x over the rest
    std::vector<int64_t> forced; //!< positions that are always kept

    int64_t numOut() const noexcept
    {
        return rowsOut(numKept, fuse);
    }

    int64_t numRest() const noexcept
    {
        return rowsLeft(numTokens, numKept);
    }
};

Sizes sizesOf(Attributes const& attributes, Shapes const& inputs);

} // namespace trtc::token_select
