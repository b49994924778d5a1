#include "regex.h"

#include "error.h"
#include "unicode.h"

#include <algorithm>

namespace trtc::runtime
{
namespace
{

constexpr size_t kLONGEST_PATTERN = 8192;
constexpr uint64_t kSTEPS_A_MATCH = 1000, kSTEPS_A_CHARACTER = 2000; // of matching, before it is given up

} // namespace

bool Regex::Set::looksFor(char32_t character) const noexcept
{
    bool const found = std::any_of(items.begin(), items.end(),
        [&](Item const& item)
        {
            bool const isIt = item.categories != 0 ? (item.categories >> categoryOf(character) & 1) != 0
                : item.isSpace                     ? isSpace(character)
                                                   : item.first <= character && character <= item.last;
            return isIt != item.isNegated;
        });
    return found != isNegated;
}

bool Regex::Set::has(char32_t character) const noexcept
{
    return character < 128 ? (low[character / 64] >> character % 64 & 1) != 0 : looksFor(character);
}

Regex::Regex(std::string const& pattern)
    : mPattern(pattern)
{
    auto read = charactersOf(pattern);
    if (!read || read->size() > kLONGEST_PATTERN)
    {
        throw unsupportedError(
            "The tokenizer's pattern is no UTF-8 of at most " + std::to_string(kLONGEST_PATTERN) + " characters.");
    }
    Regex::read(*this, std::move(*read));
}

bool Regex::match(std::u32string_view text, size_t step, size_t at, size_t& end, uint64_t& left) const
{
    struct Open
    {
        size_t step, most, least; //!< where to go on, from which places on: the largest first
    };
    std::vector<Open> open;
    while (true)
    {
        if (left-- == 0)
        {
            throw unsupportedError("The tokenizer's pattern '" + shown(mPattern, 300)
                + "' takes too many steps on this text; split the text, or run this model from Python.");
        }
        Step const& now = mSteps[step];
        bool holds = true;
        switch (now.what)
        {
        case Do::kSET:
            holds = at < text.size() && mSets[now.set].has(text[at]);
            ++at;
            ++step;
            break;
        case Do::kLOOP:
        {
            Set const& set = mSets[now.set];
            size_t const most = now.second < text.size() - at ? at + now.second : text.size();
            size_t last = at;
            while (last < most && set.has(text[last]))
            {
                ++last;
            }
            holds = last - at >= now.first;
            if (holds && !now.isFinal && last > at + now.first)
            {
                open.push_back({step + 1, last - 1, at + now.first});
            }
            at = last;
            ++step;
            break;
        }
        case Do::kSPLIT:
            open.push_back({now.second, at, at});
            step = now.first;
            break;
        case Do::kJUMP: step = now.first; break;
        case Do::kLOOK:
        {
            size_t ignored = 0;
            holds = match(text, step + 1, at, ignored, left) != now.isFinal;
            step = now.first;
            break;
        }
        case Do::kEND: end = at; return true;
        }
        if (!holds)
        {
            if (open.empty())
            {
                return false;
            }
            Open& last = open.back();
            step = last.step;
            at = last.most;
            if (last.most == last.least)
            {
                open.pop_back();
            }
            else
            {
                --last.most;
            }
        }
    }
}

std::vector<std::pair<size_t, size_t>> Regex::find(std::u32string_view text) const
{
    std::vector<std::pair<size_t, size_t>> found;
    for (size_t at = 0; at < text.size();)
    {
        size_t end = 0;
        uint64_t left = kSTEPS_A_MATCH * mSteps.size() + kSTEPS_A_CHARACTER * (text.size() - at);
        if (match(text, 0, at, end, left))
        {
            found.emplace_back(at, end);
            at = end;
        }
        else
        {
            ++at;
        }
    }
    return found;
}

} // namespace trtc::runtime
