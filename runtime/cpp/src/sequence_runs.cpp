// One run of a procedure's graphs: what they are fed, the room that they need, and the upkeep behind it.

#include "error.h"
#include "sequences.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace trtc::runtime
{
namespace
{

bool holdsNan(char const* data, size_t bytes, trtc_dtype dtype)
{
    size_t const item = trtc_dtype_bytes(dtype);
    for (size_t at = 0; at + item <= bytes && dtype == TRTC_FLOAT32; at += item)
    {
        float value = 0;
        std::memcpy(&value, data + at, sizeof value);
        if (std::isnan(value))
        {
            return true;
        }
    }
    for (size_t at = 0; at + item <= bytes && dtype == TRTC_FLOAT64; at += item)
    {
        double value = 0;
        std::memcpy(&value, data + at, sizeof value);
        if (std::isnan(value))
        {
            return true;
        }
    }
    for (size_t at = 0; at + item <= bytes && dtype == TRTC_FLOAT16; at += item)
    {
        uint16_t bits = 0;
        std::memcpy(&bits, data + at, sizeof bits);
        if ((bits & 0x7FFF) > 0x7C00)
        {
            return true;
        }
    }
    return false;
}

} // namespace

int64_t Sequences::used(size_t symbol, size_t row) const
{
    Capacity const& capacity = *mLoaded->symbols[symbol].capacity;
    if (!capacity.used)
    {
        return mSeen[row];
    }
    size_t const state = mLoaded->state(*capacity.used);
    char const* const held = state == kNONE ? nullptr : mStates->current(state);
    int64_t found = 0;
    if (held != nullptr && row < static_cast<size_t>(mStates->value(state).shape[0]))
    {
        std::memcpy(&found, held + row * sizeof found, sizeof found);
    }
    return found;
}

int64_t Sequences::fullest(size_t symbol) const
{
    int64_t found = 0;
    for (size_t row = 0; row < mSeen.size(); ++row)
    {
        found = std::max(found, used(symbol, row));
    }
    return found;
}

void Sequences::reserve(Turn const& turn, int64_t tokens)
{
    for (size_t const symbol : turn.capacities)
    {
        mStates->reserve(symbol, mLoaded->symbols[symbol].capacity->needed(turn.names, fullest(symbol), tokens));
    }
}

void Sequences::turn(Turn& turn, Port const* check)
{
    if (check != nullptr)
    {
        mStates->confirm = [this, check] { refuseNan(*check); };
    }
    try
    {
        mStates->run(turn.graphs.data(), turn.graphs.size());
    }
    catch (...)
    {
        mStates->confirm = nullptr;
        throw;
    }
    mStates->confirm = nullptr;
}

void Sequences::refuseNan(Port const& logits) const
{
    View const& view = mStates->slot(logits.slot);
    if (!holdsNan(view.data, view.bytes, logits.dtype))
    {
        return;
    }
    StateSpec const* first = nullptr;
    for (size_t at = 0; at < mLoaded->states.size(); ++at)
    {
        StateSpec const& spec = mLoaded->states[at];
        char const* const held = mStates->current(at);
        std::vector<int64_t> const& shape = mStates->value(at).shape;
        if (spec.spec->layer && held != nullptr && (first == nullptr || *spec.spec->layer < *first->spec->layer)
            && holdsNan(held, elementsOf(shape.data(), shape.size()) * spec.itemBytes, spec.dtype))
        {
            first = &spec;
        }
    }
    if (first != nullptr)
    {
        bool const isLost = mStates->hasWrittenInPlace();
        throw unsupportedError("A run behind " + std::to_string(*std::max_element(mSeen.begin(), mSeen.end()))
            + " tokens gives NaN, and so does first the cache of layer " + std::to_string(*first->spec->layer)
            + (isLost ? "; the sequences have to be begun anew." : "; the sequences are as they were before it.")
            + " Verify the bundle, or export it in a precision of more range.");
    }
}

void Sequences::feed(Turn& turn, Part const& part, Texts const& texts)
{
    size_t const batch = mSeen.size();
    auto const tokens = static_cast<size_t>(part.tokens);
    std::string const& position = mProcedure.position;
    size_t const symbol = position == "seen" || position == "kept" ? kNONE : mLoaded->symbol(position);
    for (Feed& each : turn.feeds)
    {
        bool const isFlat = each.what == "count" || each.what == "seen";
        size_t const columns = isFlat ? 1 : tokens, item = each.isShort ? 4 : 8;
        if (each.memory.size() < batch * columns * item)
        {
            each.memory.resize(batch * columns * item);
        }
        char* into = each.memory.data();
        for (size_t row = 0; row < batch; ++row)
        {
            int64_t const count = part.counts.empty() ? 0 : part.counts[row];
            int64_t const* const text = texts.data.empty() ? nullptr : texts.data[row];
            int64_t const length = texts.lengths.empty() ? 0 : texts.lengths[row];
            int64_t const first = symbol == kNONE ? mSeen[row] : used(symbol, row);
            for (size_t at = 0; at < columns; ++at, into += item)
            {
                auto const place = static_cast<int64_t>(at);
                int64_t const next = part.start + place + 1;
                bool const isToken = place < count;
                int64_t const value = each.what == "tokens" ? (isToken ? text[part.start + place] : 0)
                    : each.what == "next"                   ? (isToken && next < length ? text[next] : 0)
                    : each.what == "count"                  ? count
                    : each.what == "seen"                   ? mSeen[row]
                    : each.what == "positions"              ? first + place
                    : isToken && !texts.rows.empty()        ? texts.rows[row][static_cast<size_t>(part.start + place)]
                                                            : -1;
                auto const narrow = static_cast<int32_t>(value);
                std::memcpy(into, each.isShort ? static_cast<void const*>(&narrow) : &value, item);
            }
        }
        View view;
        view.data = each.memory.data();
        view.bytes = batch * columns * item;
        view.rank = isFlat ? 1 : 2;
        view.shape[0] = static_cast<int64_t>(batch);
        view.shape[1] = static_cast<int64_t>(columns);
        mStates->give(each.slot, view);
    }
}

void Sequences::run(
    Turn& turn, Part const& part, Texts const& texts, std::vector<char const*> const& moments, std::vector<char>* apart)
{
    auto const aside = withoutRoom(turn, part);
    if (!aside.empty())
    {
        runWithout(aside, turn, part, texts, moments, *apart);
        return;
    }
    reserve(turn, part.tokens);
    mStates->begin();
    feed(turn, part, texts);
    this->turn(turn, turn.logits);
    for (size_t row = 0; row < mSeen.size(); ++row)
    {
        mSeen[row] += part.counts[row];
    }
    keepUp(moments);
}

void Sequences::keepUp(std::vector<char const*> const& moments)
{
    Part const nothing;
    Texts const none;
    for (size_t at = 0; at < mUpkeep.size(); ++at)
    {
        Upkeep const& entry = mProcedure.upkeep[at];
        bool const isDue =
            std::any_of(moments.begin(), moments.end(), [&](char const* moment) { return entry.after == moment; });
        size_t const symbol = entry.capacity ? mLoaded->symbol(*entry.capacity) : kNONE;
        auto const once = [&]
        {
            reserve(mUpkeep[at], 0);
            mStates->begin();
            feed(mUpkeep[at], nothing, none);
            turn(mUpkeep[at], nullptr);
        };
        if (isDue && symbol == kNONE)
        {
            once();
        }
        int64_t held = isDue && symbol != kNONE ? fullest(symbol) : -1;
        while (held >= entry.atLeast.value_or(INT64_MAX))
        {
            once();
            int64_t const before = held;
            held = fullest(symbol);
            if (held >= before)
            {
                throw bundleError("The bundle's procedure is at fault: '" + entry.graph + "' was run because '"
                    + *entry.capacity + "' has " + std::to_string(before) + " slots in use, and then it had "
                    + std::to_string(held) + "; export the bundle again.");
            }
        }
    }
}

std::vector<size_t> Sequences::withoutRoom(Turn const& turn, Part const& part) const
{
    std::vector<size_t> found;
    bool const hasNone = std::find(part.counts.begin(), part.counts.end(), 0) != part.counts.end();
    bool const hasSome = std::any_of(part.counts.begin(), part.counts.end(), [](int64_t each) { return each > 0; });
    if (!hasNone || !hasSome || mIsFixed)
    {
        return found;
    }
    for (size_t row = 0; row < part.counts.size(); ++row)
    {
        bool isFull = false;
        for (size_t const symbol : turn.capacities)
        {
            int64_t const limit = mStates->limit(symbol);
            isFull = isFull
                || (limit >= 0
                    && mLoaded->symbols[symbol].capacity->needed(turn.names, used(symbol, row), part.tokens) > limit);
        }
        if (isFull && part.counts[row] == 0)
        {
            found.push_back(row);
        }
    }
    return found;
}

void Sequences::runWithout(std::vector<size_t> const& aside, Turn& turn, Part const& part, Texts const& texts,
    std::vector<char const*> const& moments, std::vector<char>& logits)
{
    size_t const batch = mSeen.size();
    std::vector<size_t> going, places, order(batch);
    for (size_t row = 0; row < batch; ++row)
    {
        if (std::find(aside.begin(), aside.end(), row) == aside.end())
        {
            going.push_back(row);
        }
    }
    places = going;
    places.insert(places.end(), aside.begin(), aside.end());
    for (size_t at = 0; at < batch; ++at)
    {
        order[places[at]] = at;
    }
    auto const seen = mSeen;
    auto const held = mStates->fork();
    held->keep(aside);
    mStates->keep(going);
    Part some = part;
    Texts given;
    some.counts.clear();
    mSeen.clear();
    for (size_t const row : going)
    {
        some.counts.push_back(part.counts[row]);
        mSeen.push_back(seen[row]);
        given.data.push_back(texts.data[row]);
        given.lengths.push_back(texts.lengths[row]);
        if (!texts.rows.empty())
        {
            given.rows.push_back(texts.rows[row]);
        }
    }
    auto const putBack = [&]
    {
        mStates->join(*held, order);
        auto read = seen;
        for (size_t at = 0; at < going.size(); ++at)
        {
            read[going[at]] = mSeen[at];
        }
        mSeen = read;
    };
    View view;
    try
    {
        run(turn, some, given, moments, nullptr);
        view = mStates->slot(turn.logits->slot);
        size_t const one = view.bytes / going.size();
        logits.assign(one * batch, 0);
        for (size_t at = 0; at < going.size(); ++at)
        {
            std::memcpy(logits.data() + going[at] * one, view.data + at * one, one);
        }
    }
    catch (...)
    {
        putBack();
        throw;
    }
    putBack();
}

} // namespace trtc::runtime
