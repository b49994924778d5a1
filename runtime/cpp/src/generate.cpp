#include "generate.h"

#include "error.h"

#include <algorithm>
#include <cstring>

namespace trtc::runtime
{
namespace
{

constexpr int64_t kMAX_NEW = 256;
constexpr size_t kMOST_STOPS = 64, kLONGEST_STOP = 4096;

float halfOf(uint16_t bits)
{
    uint32_t const sign = static_cast<uint32_t>(bits & 0x8000) << 16;
    uint32_t exponent = bits >> 10 & 31, fraction = bits & 0x3FF;
    if (exponent == 0 && fraction != 0) // of the smallest ones the first bit is not left out
    {
        exponent = 1;
        for (; (fraction & 0x400) == 0; fraction <<= 1)
        {
            --exponent;
        }
        fraction &= 0x3FF;
        exponent += 112;
    }
    else if (exponent != 0)
    {
        exponent += exponent == 31 ? 224 : 112;
    }
    uint32_t const whole = sign | exponent << 23 | fraction << 13;
    float found = 0;
    std::memcpy(&found, &whole, sizeof found);
    return found;
}

//! Elements of memory, as float32.
void widen(char const* from, trtc_dtype dtype, std::vector<float>& into)
{
    for (size_t at = 0; at < into.size(); ++at)
    {
        if (dtype == TRTC_FLOAT32)
        {
            std::memcpy(&into[at], from + 4 * at, sizeof(float));
        }
        else if (dtype == TRTC_FLOAT64)
        {
            double value = 0;
            std::memcpy(&value, from + 8 * at, sizeof value);
            into[at] = static_cast<float>(value);
        }
        else if (dtype == TRTC_FLOAT16)
        {
            uint16_t bits = 0;
            std::memcpy(&bits, from + 2 * at, sizeof bits);
            into[at] = halfOf(bits);
        }
        else
        {
            throw unsupportedError("The bundle's logits are of a dtype from which no token is chosen here; export it "
                                   "with logits of float32.");
        }
    }
}

double numberAt(Json const& from, char const* name, double fallback)
{
    Json const* const found = from.find(name);
    return found != nullptr && (found->is(Json::Kind::kINT) || found->is(Json::Kind::kFLOAT)) ? found->number
                                                                                              : fallback;
}

//! The most tokens of a sequence; none: nothing bounds them but memory.
std::optional<int64_t> contextOf(Manifest const& manifest, int64_t asked)
{
    std::optional<int64_t> found = manifest.text ? manifest.text->context : std::nullopt;
    for (Capacity const& capacity : manifest.capacities)
    {
        if (!capacity.used)
        {
            int64_t const most = manifest.lengths.at(capacity.symbol).max;
            found = found ? std::min(*found, most) : most;
        }
    }
    if (asked < 0 || (asked > 0 && found && asked > *found))
    {
        throw configError("capacity=" + std::to_string(asked) + "; the bundle reads up to "
            + (found ? std::to_string(*found) : "any number of") + " tokens: ask for that, or export it for more.");
    }
    return asked > 0 ? asked : found;
}

} // namespace

Sampling samplingOf(TextInfo const& text)
{
    Json const& said = text.generation;
    Sampling made;
    Json const* const samples = said.find("do_sample");
    if (samples != nullptr && samples->is(Json::Kind::kBOOL) && samples->truth)
    {
        made.temperature = numberAt(said, "temperature", 1.0);
        made.topK = static_cast<int64_t>(numberAt(said, "top_k", 0));
        made.topP = numberAt(said, "top_p", 1.0);
        made.minP = numberAt(said, "min_p", 0.0);
    }
    made.repetitionPenalty = numberAt(said, "repetition_penalty", 1.0);
    return made;
}

Generation::Generation(std::shared_ptr<Loaded> loaded, std::shared_ptr<Tokenizer const> tokenizer,
    std::vector<int64_t> prompt, GenerateOptions const& options)
    : mLoaded(std::move(loaded))
    , mTokenizer(std::move(tokenizer))
    , mPrompt(std::move(prompt))
{
    Manifest const& manifest = mLoaded->bundle.manifest();
    auto const context = contextOf(manifest, options.capacity);
    mSequences = std::make_unique<Sequences>(mLoaded, 0, options.capacity);
    if (!manifest.procedure->media.empty())
    {
        throw unsupportedError("The bundle reads pictures or sound before its text, which trtc_sequences_attend does "
                               "and an answer does not.");
    }
    if (mSequences->seen().size() != 1)
    {
        throw unsupportedError("The bundle reads " + std::to_string(mSequences->seen().size())
            + " sequences at once and no others; export it with a range, --batch 1:2:4, or for one sequence.");
    }
    auto const vocabulary = static_cast<int64_t>(mSequences->vocabulary());
    if (vocabulary == 0)
    {
        throw bundleError("The bundle does not say of how many tokens its logits are; export it again.");
    }
    if (mTokenizer != nullptr && mTokenizer->size() > vocabulary)
    {
        throw bundleError("The tokenizer has tokens up to " + std::to_string(mTokenizer->size() - 1)
            + ", and the model knows " + std::to_string(vocabulary) + " (0 to " + std::to_string(vocabulary - 1)
            + "); export the bundle again with the tokenizer that belongs to its weights.");
    }
    if (mPrompt.empty())
    {
        throw configError("The prompt has no token; give at least one.");
    }
    for (int64_t const token : mPrompt)
    {
        if (token < 0 || token >= vocabulary)
        {
            throw configError("The prompt has the token " + std::to_string(token) + "; the model knows 0 to "
                + std::to_string(vocabulary - 1) + ".");
        }
    }
    auto const length = static_cast<int64_t>(mPrompt.size());
    if (context && length > *context)
    {
        throw configError("The prompt has " + std::to_string(length) + " tokens, and the bundle reads up to "
            + std::to_string(*context) + "; shorten it, or export the bundle for a longer context.");
    }
    if (options.maxNew < 0)
    {
        throw configError(
            "max_new=" + std::to_string(options.maxNew) + "; give at least 1, or 0 for the bundle's own.");
    }
    if (!options.stops.empty() && mTokenizer == nullptr)
    {
        throw configError("Without a tokenizer no text ends an answer; give tokens that do, or a tokenizer.");
    }
    if (options.stops.size() > kMOST_STOPS
        || std::any_of(options.stops.begin(), options.stops.end(),
            [](std::string const& each) { return each.empty() || each.size() > kLONGEST_STOP; }))
    {
        throw configError("At most " + std::to_string(kMOST_STOPS) + " texts of 1 to " + std::to_string(kLONGEST_STOP)
            + " bytes may end an answer.");
    }
    TextInfo const nothing;
    TextInfo const& text = manifest.text ? *manifest.text : nothing;
    int64_t const wanted = options.maxNew > 0
        ? options.maxNew
        : static_cast<int64_t>(numberAt(text.generation, "max_new_tokens", kMAX_NEW));
    mIsShortOfRoom = context && *context + 1 - length < wanted;
    mMost = mIsShortOfRoom ? *context + 1 - length : wanted;
    if (!options.ignoresStopTokens)
    {
        mStopTokens.insert(text.stop.begin(), text.stop.end());
        mStopTokens.insert(options.stopTokens.begin(), options.stopTokens.end());
    }
    if (mTokenizer != nullptr)
    {
        for (std::string const& stop : options.stops)
        {
            if (auto const token = mTokenizer->special(stop))
            {
                mStopTokens.insert(*token);
            }
        }
        mDetokenizer.emplace(*mTokenizer, mPrompt.data(), options.isDetached ? 0 : mPrompt.size());
    }
    mStops.emplace(options.stops);
    Sampling const sampling = options.sampling ? *options.sampling : samplingOf(text);
    checkSampling(sampling);
    mChooser.emplace(sampling, options.seed, mPrompt);
    mLogits.resize(static_cast<size_t>(vocabulary));
    mBytes.resize(mLogits.size() * trtc_dtype_bytes(mSequences->logitsType()));
}

void Generation::readLogits()
{
    trtc_tensor logits = {};
    logits.data = mBytes.data();
    logits.bytes = mBytes.size();
    if (mIsRead)
    {
        mSequences->step(&mLast, nullptr, logits);
    }
    else
    {
        int64_t const* const text = mPrompt.data();
        size_t const length = mPrompt.size();
        mSequences->read(&text, &length, logits);
    }
    mIsRead = true;
    widen(mBytes.data(), mSequences->logitsType(), mLogits);
}

std::string Generation::rest()
{
    if (!mDetokenizer)
    {
        return "";
    }
    bool hasEnded = false;
    std::string text = mStops->add(mDetokenizer->rest(), hasEnded);
    if (hasEnded)
    {
        mReason = TRTC_STOP;
        return text;
    }
    return text + mStops->rest();
}

void Generation::next(trtc_piece& piece)
{
    if (mReason != TRTC_GOES_ON)
    {
        throw configError("The answer has ended; begin another one.");
    }
    readLogits();
    mLast = mChooser->choose(mLogits);
    ++mCount;
    mText.clear();
    bool hasEnded = false;
    if (mStopTokens.count(mLast) != 0)
    {
        mReason = TRTC_STOP;
    }
    else if (mDetokenizer)
    {
        mText = mStops->add(mDetokenizer->add(mLast), hasEnded);
    }
    if (hasEnded)
    {
        mReason = TRTC_STOP;
    }
    else if (mReason == TRTC_GOES_ON && mCount >= mMost)
    {
        mReason = mIsShortOfRoom ? TRTC_CONTEXT : TRTC_LENGTH;
    }
    if (mReason != TRTC_GOES_ON && !hasEnded)
    {
        mText += rest();
    }
    piece.token = mLast;
    piece.text = mText.c_str();
    piece.bytes = mText.size();
    piece.reason = mReason;
}

} // namespace trtc::runtime
