#include "detokenizer.h"

#include "unicode.h"

#include <algorithm>

namespace trtc::runtime
{
namespace
{

constexpr size_t kBEFORE = 16; // tokens in front of a text that are looked at

bool endsWith(std::string const& text, std::string const& end)
{
    return text.size() >= end.size() && text.compare(text.size() - end.size(), end.size(), end) == 0;
}

bool isCutOff(std::string const& text)
{
    return endsWith(text, "\xEF\xBF\xBD");
}

//! How many bytes at the end of a text may be the beginning of a stop.
size_t overlap(std::string const& text, std::string const& stop)
{
    for (size_t length = std::min(text.size(), stop.size() - 1); length > 0; --length)
    {
        if (endsWith(text, stop.substr(0, length)))
        {
            return length;
        }
    }
    return 0;
}

} // namespace

Detokenizer::Detokenizer(Tokenizer const& tokenizer, int64_t const* before, size_t count)
    : mTokenizer(tokenizer)
{
    for (size_t at = count - std::min(count, kBEFORE); at < count; ++at)
    {
        take(before[at]);
    }
    mGiven = mTokens.empty() ? "" : decodedFrom(0);
    if (mIsOpen || isCutOff(mGiven)) // it ends within a character: nothing can be told apart
    {
        mTokens.clear();
        mIsOpen = false;
        mGiven.clear();
    }
    mDone = mTokens.size();
}

std::string Detokenizer::add(int64_t token)
{
    take(token);
    if (mIsOpen)
    {
        return "";
    }
    std::string text = decodedFrom(mStart);
    if (isCutOff(text) || countCharacters(text) <= countCharacters(mGiven))
    {
        return "";
    }
    return give(std::move(text));
}

std::string Detokenizer::rest()
{
    return give(decodedFrom(mStart));
}

void Detokenizer::take(int64_t token)
{
    mTokens.push_back(token);
    mIsOpen = mTokenizer.isOpen(token).value_or(mIsOpen);
}

std::string Detokenizer::decodedFrom(size_t place) const
{
    return mTokenizer.decode(mTokens.data() + place, mTokens.size() - place);
}

std::string Detokenizer::give(std::string text)
{
    std::string fresh = text.substr(offsetOf(text, countCharacters(mGiven)));
    std::string own = decodedFrom(mDone);
    if (!own.empty()) // else what follows would be decoded as if it were the beginning
    {
        mStart = mDone;
        text = std::move(own);
    }
    mGiven = std::move(text);
    mDone = mTokens.size();
    return fresh;
}

StopTexts::StopTexts(std::vector<std::string> stops)
    : mStops(std::move(stops))
{
}

std::string StopTexts::add(std::string const& text, bool& ended)
{
    mHeld += text;
    size_t end = std::string::npos, begin = 0, kept = 0;
    for (std::string const& stop : mStops)
    {
        size_t const place = mHeld.find(stop);
        if (place != std::string::npos && std::pair(place + stop.size(), place) < std::pair(end, begin))
        {
            end = place + stop.size();
            begin = place;
        }
        kept = std::max(kept, overlap(mHeld, stop));
    }
    ended = end != std::string::npos;
    std::string const given = mHeld.substr(0, ended ? begin : mHeld.size() - kept);
    mHeld = ended ? "" : mHeld.substr(mHeld.size() - kept);
    return given;
}

std::string StopTexts::rest()
{
    std::string held = std::move(mHeld);
    mHeld.clear();
    return held;
}

} // namespace trtc::runtime
