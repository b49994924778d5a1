// KVCompact in C++: its contract, and the sizes that every form works with.
#pragma once

#include "common/contract.h"

namespace trtc::kv_compact
{

Contract const& contract();

struct Sizes
{
    int64_t numHeads; //!< B * G
    int64_t length;   //!< L, slots
    int64_t kept;     //!< K, rows that move to the front
    int64_t rowBytes; //!< W elements
};

Sizes sizesOf(Shapes const& inputs, DType cacheType);

} // namespace trtc::kv_compact
