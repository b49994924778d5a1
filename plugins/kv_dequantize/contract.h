// KVDequantize in C++: its contract, and the sizes that every form works with.
#pragma once

#include "common/contract.h"
#include "common/kv_format.h"

namespace trtc::kv_dequantize
{

Contract const& contract();

struct Sizes
{
    int64_t heads; //!< KV heads of all items
    kv::Format format;

    int64_t length() const noexcept
    {
        return format.length;
    }

    int64_t width() const noexcept
    {
        return format.width;
    }
};

Sizes sizesOf(Attributes const& attributes, Shapes const& inputs);

} // namespace trtc::kv_dequantize
