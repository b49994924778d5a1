// TokenMix in C++: its contract, and the sizes that every form works with.
#pragma once

#include "common/contract.h"

namespace trtc::token_mix
{

Contract const& contract();

struct Sizes
{
    int64_t batch;
    int64_t numTokens;
    int64_t channels;
    int64_t numOut;
    int64_t numMatrices; //!< 1: one for all items, else one for each
    bool softmax;        //!< each row of the matrix becomes its softmax first

    int64_t matrixOf(int64_t item) const noexcept
    {
        return numMatrices == 1 ? 0 : item;
    }
};

Sizes sizesOf(Attributes const& attributes, Shapes const& inputs);

} // namespace trtc::token_mix
