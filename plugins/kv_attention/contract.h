// KVAttention in C++: its contract, and the sizes that every form works with.
#pragma once

#include <algorithm>

#include "common/contract.h"
#include "common/kv_format.h"

namespace trtc::kv_attention
{

Contract const& contract();

//! What is added to the products, broadcast by steps of 0.
struct BiasSteps
{
    int64_t item;
    int64_t head;
    int64_t headsOfStep; //!< consecutive query heads that share one head of the bias
    int64_t query;
    int64_t slot;

    int64_t offset(int64_t item_, int64_t head_, int64_t query_) const noexcept
    {
        return item_ * item + head_ / headsOfStep * head + query_ * query;
    }
};

//! Slots that one query sees.
struct Span
{
    int64_t first;
    int64_t last; //!< one behind

    bool isEmpty() const noexcept
    {
        return last <= first;
    }
};

struct Sizes
{
    int64_t batch;
    int64_t heads;   //!< H
    int64_t kvHeads; //!< G
    int64_t queries; //!< T
    int64_t length;  //!< L
    int64_t width;   //!< D
    kv::Format keys;
    kv::Format values;
    BiasSteps bias;
    float scale;
    bool isCausal;
    int64_t window; //!< 0: no limit

    //! Query heads of one KV head.
    int64_t repeats() const noexcept
    {
        return heads / kvHeads;
    }

    //! Queries that share the cache of one KV head, by head, then by T.
    int64_t rows() const noexcept
    {
        return repeats() * queries;
    }

    //! What query `query` sees of the first `length` slots, whatever number it is.
    Span span(int64_t given, int64_t query) const noexcept
    {
        int64_t const used = std::clamp<int64_t>(given, 0, length);
        int64_t const own = used - queries + query;
        return {window == 0 ? 0 : std::max<int64_t>(own - window + 1, 0), isCausal ? std::min(used, own + 1) : used};
    }
};

Sizes sizesOf(Attributes const& attributes, Shapes const& inputs);

} // namespace trtc::kv_attention
