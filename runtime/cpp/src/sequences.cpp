#include "sequences.h"

#include "error.h"

#include <algorithm>
#include <cstring>

namespace trtc::runtime
{
namespace
{

Procedure const& procedureOf(Loaded const& loaded)
{
    auto const& procedure = loaded.bundle.manifest().procedure;
    if (!procedure)
    {
        throw configError("The bundle has no procedure by which it would read tokens; run it with trtc_run.");
    }
    return *procedure;
}

} // namespace

Sequences::Sequences(std::shared_ptr<Loaded> loaded, int64_t batch, int64_t capacity)
    : mLoaded(std::move(loaded))
    , mProcedure(procedureOf(*mLoaded))
{
    int64_t fixed = 0;
    for (auto const& [name, what] : mProcedure.feeds)
    {
        mTellsFilling = mTellsFilling || what == "count";
        if (what == "tokens")
        {
            Graph const* const graph = mLoaded->bundle.manifest().graph(graphOf(name));
            for (TensorInfo const& info : graph->inputs)
            {
                if (info.name == tensorOf(name) && info.shape[0].isNumber())
                {
                    fixed = info.shape[0].length;
                }
            }
        }
    }
    mIsFixed = fixed > 0;
    if (fixed > 0 && batch != 0 && batch != fixed)
    {
        throw configError("batch=" + std::to_string(batch) + "; the bundle was exported for a fixed batch: begin "
            + std::to_string(fixed) + " sequences.");
    }
    if (batch < 0 || batch > 65535)
    {
        throw configError("batch=" + std::to_string(batch) + "; give 1 to 65535 sequences.");
    }
    int64_t const count = fixed > 0 ? fixed : std::max<int64_t>(batch, 1);
    mStates = std::make_unique<States>(mLoaded, fixed > 0 ? 0 : count, capacity);
    mSeen.assign(static_cast<size_t>(count), 0);
    mPrompt = turnOf(mProcedure.prompt.graphs, mProcedure.prompt.logits);
    mStep = turnOf(mProcedure.step.graphs, mProcedure.step.logits);
    for (Upkeep const& each : mProcedure.upkeep)
    {
        mUpkeep.push_back(turnOf({each.graph}, ""));
    }
    for (Media const& each : mProcedure.media)
    {
        mMedia.push_back(turnOf(each.graphs, ""));
        for (size_t const graph : mMedia.back().graphs)
        {
            for (Port const& port : mLoaded->graphs[graph].inputs)
            {
                if (port.isGiven)
                {
                    mMediaInputs.push_back(&port);
                }
            }
        }
    }
    mOne.data.resize(mSeen.size());
    mOne.lengths.assign(mSeen.size(), 1);
    mStepPart.tokens = 1;
}

Sequences::Turn Sequences::turnOf(std::vector<std::string> const& names, std::string const& logits) const
{
    Turn made;
    made.names = names;
    for (std::string const& name : names)
    {
        size_t const number = mLoaded->graph(name);
        if (number == kNONE)
        {
            throw configError("The procedure runs the graph '" + shown(name) + "', which is not loaded; open it, too.");
        }
        made.graphs.push_back(number);
        LoadedGraph const& graph = mLoaded->graphs[number];
        for (Port const& port : graph.inputs)
        {
            auto const feed = mProcedure.feeds.find(port.whole);
            if (feed != mProcedure.feeds.end() && port.isGiven)
            {
                made.feeds.push_back({port.slot, feed->second, port.dtype == TRTC_INT32, {}});
            }
        }
        for (Port const& port : graph.outputs)
        {
            if (port.whole == logits && port.state == kNONE)
            {
                made.logits = &port;
            }
        }
    }
    if (!logits.empty() && made.logits == nullptr)
    {
        throw bundleError("The logits '" + shown(logits) + "' are a state; export the bundle again.");
    }
    for (Capacity const& capacity : mLoaded->bundle.manifest().capacities)
    {
        size_t const symbol = mLoaded->symbol(capacity.symbol);
        bool const adds = std::any_of(
            names.begin(), names.end(), [&](std::string const& name) { return capacity.adds.count(name) != 0; });
        if (adds && symbol != kNONE)
        {
            made.capacities.push_back(symbol);
        }
    }
    return made;
}

size_t Sequences::vocabulary() const noexcept
{
    Axis const& last = mStep.logits->axes.back();
    return last.symbol == kNONE ? static_cast<size_t>(last.length) : 0;
}

trtc_dtype Sequences::logitsType() const noexcept
{
    return mStep.logits->dtype;
}

void Sequences::attend(std::vector<std::pair<Port const*, View>> const& inputs)
{
    for (int64_t const each : mSeen)
    {
        if (each != 0)
        {
            throw configError("What stands beside the tokens is read before them; begin new sequences.");
        }
    }
    for (Turn& media : mMedia)
    {
        mStates->begin();
        for (auto const& [port, view] : inputs)
        {
            mStates->give(port->slot, view);
        }
        turn(media, nullptr);
    }
    mAttended = true;
}

void Sequences::readMedia(Texts& texts) const
{
    bool const hasTokens = std::any_of(
        mProcedure.media.begin(), mProcedure.media.end(), [](Media const& each) { return each.token.has_value(); });
    if (!hasTokens)
    {
        return;
    }
    for (size_t text = 0; text < texts.data.size(); ++text)
    {
        bool const isPlaced = mAttended && mSeen[text] == 0;
        std::vector<int64_t> found(static_cast<size_t>(texts.lengths[text]), -1);
        int64_t row = 0;
        for (Media const& each : mProcedure.media)
        {
            if (!each.token || !each.rows)
            {
                continue;
            }
            int64_t count = 0;
            for (size_t at = 0; at < found.size(); ++at)
            {
                if (texts.data[text][at] == *each.token)
                {
                    found[at] = row + count++;
                }
            }
            if (count != (isPlaced ? *each.rows : 0))
            {
                throw configError("The text has the token " + std::to_string(*each.token) + " " + std::to_string(count)
                    + " times, and it stands for "
                    + (isPlaced ? "a row of what '" + each.graphs.back() + "' found, of which there are "
                                + std::to_string(*each.rows)
                                : "what '" + each.graphs.back()
                                + "' finds, in the first text that is read after that was run")
                    + ".");
            }
            row += *each.rows;
        }
        texts.rows.push_back(std::move(found));
    }
}

void Sequences::checkVocabulary(trtc_tensor const& logits, size_t columns, Turn const& turn) const
{
    size_t const bytes = mSeen.size() * columns * turn.logits->itemBytes;
    if (logits.data == nullptr || logits.bytes < bytes)
    {
        throw shapeError("The logits take " + std::to_string(bytes) + " bytes, shape [" + std::to_string(mSeen.size())
            + ", " + std::to_string(columns) + "], and the buffer has "
            + std::to_string(logits.data == nullptr ? 0 : logits.bytes) + "; give a larger one.");
    }
}

void Sequences::copyRow(View const& logits, size_t row, int64_t token, size_t item, char* into) const
{
    auto const columns = static_cast<size_t>(logits.shape[logits.rank - 1]);
    size_t at = row;
    if (logits.rank == 3)
    {
        at = row * static_cast<size_t>(logits.shape[1]) + static_cast<size_t>(std::max<int64_t>(token, 0));
    }
    if ((at + 1) * columns * item > logits.bytes)
    {
        throw bundleError("The logits have another shape than their rows need; export the bundle again.");
    }
    std::memcpy(into, logits.data + at * columns * item, columns * item);
}

void Sequences::read(int64_t const* const* texts, size_t const* lengths, trtc_tensor& logits)
{
    Texts given;
    size_t shortest = SIZE_MAX, longest = 0;
    for (size_t row = 0; row < mSeen.size(); ++row)
    {
        if (lengths[row] > (size_t{1} << 31) || (lengths[row] != 0 && texts[row] == nullptr))
        {
            throw configError("Text " + std::to_string(row) + " has " + std::to_string(lengths[row])
                + " tokens, or is NULL; give the numbers of its tokens.");
        }
        given.data.push_back(texts[row]);
        given.lengths.push_back(static_cast<int64_t>(lengths[row]));
        shortest = std::min(shortest, lengths[row]);
        longest = std::max(longest, lengths[row]);
    }
    if (longest == 0)
    {
        throw configError("There is no token to read; give at least one.");
    }
    if (shortest != longest && !mTellsFilling)
    {
        throw configError("The texts have " + std::to_string(shortest) + " to " + std::to_string(longest)
            + " tokens, and the bundle cannot tell filling from tokens; give texts of equal length, or sequences of "
              "their own.");
    }
    readMedia(given);
    Pass const& pass = mProcedure.prompt;
    auto const total = static_cast<int64_t>(longest);
    int64_t low = pass.tokens.length, high = low;
    if (!pass.tokens.isNumber())
    {
        Range const& range = mLoaded->bundle.manifest().lengths.at(pass.tokens.symbol);
        low = range.min;
        high = range.max;
    }
    if (pass.whole && (total < low || total > high))
    {
        throw configError("The prompt has " + std::to_string(total) + " tokens, and from " + std::to_string(low)
            + " to " + std::to_string(high) + " are read at once.");
    }
    if (vocabulary() != 0)
    {
        checkVocabulary(logits, vocabulary(), mPrompt); // before anything is read
    }
    bool isFirst = true;
    std::vector<char> apart;
    int64_t const stride = pass.whole ? total : high;
    size_t columns = 0;
    for (int64_t start = 0; start < total; start += stride)
    {
        Part part;
        part.start = start;
        part.tokens = std::max(low, std::min(stride, total - start));
        bool const isLast = start + part.tokens >= total;
        for (int64_t const length : given.lengths)
        {
            part.counts.push_back(std::clamp<int64_t>(length - start, 0, part.tokens));
        }
        if (!mTellsFilling && *std::min_element(part.counts.begin(), part.counts.end()) < part.tokens)
        {
            throw configError(std::to_string(total) + " tokens are not read in runs of at least "
                + std::to_string(part.tokens)
                + ", and the bundle cannot tell filling from tokens; give more or fewer.");
        }
        apart.clear();
        run(mPrompt, part, given,
            isLast ? std::vector<char const*>{"run", "chunk", "prompt"} : std::vector<char const*>{"run", "chunk"},
            &apart);
        View view = mStates->slot(mPrompt.logits->slot);
        if (!apart.empty())
        {
            view.data = apart.data();
            view.bytes = apart.size();
        }
        size_t const item = mPrompt.logits->itemBytes;
        columns = static_cast<size_t>(view.shape[view.rank - 1]);
        if (isFirst)
        {
            checkVocabulary(logits, columns, mPrompt);
            std::memset(logits.data, 0, mSeen.size() * columns * item);
            isFirst = false;
        }
        for (size_t row = 0; row < mSeen.size(); ++row)
        {
            if (start < given.lengths[row] && given.lengths[row] <= start + part.tokens)
            {
                copyRow(view, row, part.counts[row] - 1, item, static_cast<char*>(logits.data) + row * columns * item);
            }
        }
    }
    logits.dtype = mPrompt.logits->dtype;
    logits.rank = 2;
    logits.shape[0] = static_cast<int64_t>(mSeen.size());
    logits.shape[1] = static_cast<int64_t>(columns);
}

void Sequences::step(int64_t const* tokens, uint8_t const* ended, trtc_tensor& logits)
{
    mStepPart.counts.resize(mSeen.size());
    for (size_t row = 0; row < mSeen.size(); ++row)
    {
        mOne.data[row] = tokens + row;
        mStepPart.counts[row] = ended == nullptr || ended[row] == 0 ? 1 : 0;
        if (mStepPart.counts[row] == 0 && !mTellsFilling)
        {
            throw configError("A sequence has ended, and the bundle cannot tell filling from tokens, so that all "
                + std::to_string(mSeen.size()) + " sequences read one: take those that have ended out of the states.");
        }
    }
    if (vocabulary() != 0)
    {
        checkVocabulary(logits, vocabulary(), mStep);
    }
    static std::vector<char const*> const kMOMENTS = {"run", "step"};
    std::vector<char> apart;
    run(mStep, mStepPart, mOne, kMOMENTS, &apart);
    View view = mStates->slot(mStep.logits->slot);
    if (!apart.empty())
    {
        view.data = apart.data();
        view.bytes = apart.size();
    }
    auto const columns = static_cast<size_t>(view.shape[view.rank - 1]);
    size_t const item = mStep.logits->itemBytes;
    checkVocabulary(logits, columns, mStep);
    for (size_t row = 0; row < mSeen.size(); ++row)
    {
        copyRow(view, row, 0, item, static_cast<char*>(logits.data) + row * columns * item);
    }
    logits.dtype = mStep.logits->dtype;
    logits.rank = 2;
    logits.shape[0] = static_cast<int64_t>(mSeen.size());
    logits.shape[1] = static_cast<int64_t>(columns);
}

void Sequences::keep(std::vector<size_t> const& rows)
{
    std::vector<size_t> all(mSeen.size());
    for (size_t at = 0; at < all.size(); ++at)
    {
        all[at] = at;
    }
    if (rows == all)
    {
        return; // which a fixed batch can do as well
    }
    mStates->keep(rows);
    std::vector<int64_t> seen;
    for (size_t const row : rows)
    {
        seen.push_back(mSeen[row]);
    }
    mSeen = std::move(seen);
    mOne.data.resize(mSeen.size());
    mOne.lengths.assign(mSeen.size(), 1);
}

} // namespace trtc::runtime
