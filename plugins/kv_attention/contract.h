// KVAttention in C++: its contract, and what KVAttentionPlain shares with it, the sizes that every form works with
// among them.
#pragma once

#include <algorithm>
#include <vector>

#include "common/contract.h"
#include "common/kv_format.h"
#include "common/portable.h"

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

//! Slots that follow each other.
struct Span
{
    int64_t first;
    int64_t last; //!< one behind

    TRTC_HOST_DEVICE bool isEmpty() const noexcept
    {
        return last <= first;
    }
};

constexpr int32_t kSPANS = 3;

//! Slots that one query sees: in order, apart from each other, some empty.
struct Spans
{
    Span of[kSPANS];
};

//! What decides which slots a query sees.
struct Sight
{
    int64_t length; //!< L
    int64_t queries;
    int64_t window; //!< 0: no limit
    int64_t sinks;
    bool isCausal;
    bool isRing;

    //! What query `query` sees if `given` tokens were written, whatever number that is.
    TRTC_HOST_DEVICE Spans spans(int64_t given, int64_t query) const noexcept
    {
        int64_t const written = given < 0 ? 0 : !isRing && given > length ? length : given;
        int64_t const own = written - queries + query;
        int64_t const newest = isCausal && own < written - 1 ? own : written - 1;
        int64_t const end = newest + 1;
        int64_t const recent = window == 0 || own < window ? 0 : own - window + 1;
        if (end <= 0)
        {
            return {};
        }
        if (!isRing)
        {
            int64_t const kept = sinks < end ? sinks : end;
            return recent <= kept ? Spans{{{0, end}, {}, {}}} : Spans{{{0, kept}, {recent, end}, {}}};
        }
        int64_t const period = length - sinks;
        int64_t const held = written - period > sinks ? written - period : sinks;
        int64_t const first = recent > held ? recent : held;
        Span const kept{0, sinks < end ? sinks : end};
        if (period <= 0 || first >= end)
        {
            return {{kept, {}, {}}};
        }
        int64_t const slot = sinks + (first - sinks) % period;
        int64_t const behind = slot + (end - first) - length; // of the numbers, those that went on from the sinks
        return behind <= 0 ? Spans{{kept, {slot, slot + (end - first)}, {}}}
                           : Spans{{kept, {sinks, sinks + behind}, {slot, length}}};
    }
};

//! Where the index of a KV head is, broadcast by steps of 0.
struct IndexSteps
{
    int64_t item;
    int64_t head;
    int64_t lists; //!< that there are

    TRTC_HOST_DEVICE int64_t list(int64_t item_, int64_t head_) const noexcept
    {
        return item_ * item + head_ * head;
    }
};

//! What is added to the rows of a side: for each block of slots a basis, and for each slot factors of its rows.
struct LowRank
{
    int64_t rank;   //!< rows of a basis; 0: nothing is added
    int64_t block;  //!< slots that share one
    int64_t blocks; //!< of a KV head

    TRTC_HOST_DEVICE int64_t factorAt(int64_t head, int64_t length, int64_t slot) const noexcept
    {
        return (head * length + slot) * rank;
    }

    TRTC_HOST_DEVICE int64_t basisAt(int64_t head, int64_t slot, int64_t width) const noexcept
    {
        return (head * blocks + slot / block) * rank * width;
    }
};

//! Cosines, then sines, of each slot, which turn the first channels of a key in pairs: i with i + channels / 2.
struct Turning
{
    int64_t channels; //!< 0: none
    int64_t item;     //!< steps of the table, in KV heads; 0 where they share it
    int64_t head;

    TRTC_HOST_DEVICE int64_t rowAt(int64_t item_, int64_t head_, int64_t length, int64_t slot) const noexcept
    {
        return ((item_ * item + head_ * head) * length + slot) * channels;
    }
};

struct Sizes
{
    int64_t batch;
    int64_t heads;   //!< H
    int64_t kvHeads; //!< G
    int64_t queries; //!< T
    int64_t length;  //!< L
    int64_t columns; //!< slots of a KV head that may be read: L, or the K that are chosen
    int64_t width;   //!< D
    bool isIndexed;
    IndexSteps index;
    int64_t lengthHeads; //!< lengths of an item: one, or one for each KV head
    kv::Format keys;
    kv::Format values;
    BiasSteps bias;
    float scale;
    float softcap; //!< 0: none
    DType rowType; //!< of the cache: uint8 for codes
    Sight sight;
    LowRank ofKeys;
    LowRank ofValues;
    Turning turning;

    //! Whether something is done to rows beside their codes.
    bool hasSides() const noexcept
    {
        return ofKeys.rank > 0 || ofValues.rank > 0 || turning.channels > 0;
    }

    //! Query heads of one KV head.
    int64_t repeats() const noexcept
    {
        return heads / kvHeads;
    }

    //! Where the length of a KV head, over all items, is.
    int64_t lengthAt(int64_t head) const noexcept
    {
        return lengthHeads == 1 ? head / kvHeads : head;
    }

    //! Queries that share the cache of one KV head, by head, then by T.
    int64_t rows() const noexcept
    {
        return repeats() * queries;
    }
};

Sizes sizesOf(Attributes const& attributes, Shapes const& inputs);

// ---- shared with KVAttentionPlain -----------------------------------------------------------------------------------

//! Behind the attributes of an operator's own.
std::vector<AttributeContract> withAttending(std::vector<AttributeContract> attributes);

//! Inputs behind the cache, in this order.
struct AttendingShapes
{
    Shape const& length;
    Shape const& bias;
    Shape const& index;
};

//! Inputs that every attention has behind its cache.
std::vector<TensorContract> withAttending(std::vector<TensorContract> inputs);

//! Heads, length, bias, index and the attributes, for a cache [B, G, L, …].
Error checkAttending(Attributes const& attributes, Shape const& q, Shape const& cache, AttendingShapes const& others);

//! Sizes for a cache [B, G, L, …], but for its formats.
Sizes attendingSizes(Attributes const& attributes, Shape const& q, Shape const& cache, AttendingShapes const& others);

template <typename Size>
SizeLists<Size> outputShapes(Attributes const& /*attributes*/, SizeLists<Size> const& inputs)
{
    std::vector<Size> const& q = inputs[0];
    return {q, {q[0], q[1], q[2]}};
}

} // namespace trtc::kv_attention
