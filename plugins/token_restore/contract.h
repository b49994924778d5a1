// TokenRestore in C++: its contract, and the sizes that every form works with.
#pragma once

#include "common/contract.h"

namespace trtc::token_restore
{

Contract const& contract();

struct Sizes
{
    int64_t batch;
    int64_t numTokens; //!< N, rows of the output
    int64_t numRows;   //!< M, rows of y
    int64_t channels;
    bool unpermute; //!< index holds the position of each row of y, not the row for each position
};

Sizes sizesOf(Attributes const& attributes, Shapes const& inputs);

} // namespace trtc::token_restore
