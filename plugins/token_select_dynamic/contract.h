// TokenSelectDynamic in C++: its contract, and the sizes that every form works with.
#pragma once

#include "common/contract.h"

namespace trtc::token_select_dynamic
{

Contract const& contract();

struct Sizes
{
    int64_t batch;
    int64_t numTokens;
    int64_t channels;
    int64_t minKept;
    int64_t maxKept;
    bool byMass; //!< the best that hold a share of all score, else those that reach the threshold
    bool trim;   //!< outputs as long as the largest count of the batch
    float threshold;
    std::vector<int64_t> forced; //!< positions that are always kept, ascending, each once
};

Sizes sizesOf(Attributes const& attributes, Shapes const& inputs);

} // namespace trtc::token_select_dynamic
