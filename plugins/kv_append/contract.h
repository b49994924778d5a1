// KVAppend in C++: its contract, and the sizes that every form works with.
#pragma once

#include "common/contract.h"

namespace trtc::kv_append
{

Contract const& contract();

struct Sizes
{
    int64_t batch;
    int64_t heads;  //!< G, KV heads
    int64_t length; //!< L, slots
    int64_t tokens; //!< T, new rows
    int64_t width;  //!< W, elements of a row
    bool isRing;
    int64_t sinks;
    int64_t itemSize;  //!< bytes of an element
    int64_t positions; //!< of all items: one of each, or one of each KV head

    int64_t rowBytes() const noexcept
    {
        return width * itemSize;
    }

    //! Where the position of a KV head, over all items, is.
    int64_t positionAt(int64_t head) const noexcept
    {
        return positions == batch ? head / heads : head;
    }

    //! Whether an item may have this position.
    bool allows(int64_t position) const noexcept
    {
        return position >= 0 && (isRing || position <= length - tokens);
    }

    //! The slot of the first new token. Those after it follow up to the last slot, then from the slot behind the sinks.
    int64_t firstSlot(int64_t position) const noexcept
    {
        return !isRing || position < sinks ? position : sinks + (position - sinks) % (length - sinks);
    }
};

Sizes sizesOf(Attributes const& attributes, Shapes const& inputs, DType cacheType);

} // namespace trtc::kv_append
