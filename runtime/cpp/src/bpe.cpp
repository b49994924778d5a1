#include "bpe.h"

#include <cstdio>
#include <queue>
#include <stdexcept>

namespace trtc::runtime
{
namespace
{

constexpr int64_t kMOST_TOKENS = int64_t{1} << 24;

uint64_t keyOf(int64_t left, int64_t right) noexcept
{
    return static_cast<uint64_t>(left) << 32 | static_cast<uint64_t>(right);
}

} // namespace

Bpe::Bpe(BpeParts parts)
    : mVocabulary(std::move(parts.vocabulary))
    , mFusesUnknown(parts.fusesUnknown)
    , mFallsBackToBytes(parts.fallsBackToBytes)
    , mTakesWholeWords(parts.takesWholeWords)
{
    for (auto const& [token, number] : mVocabulary)
    {
        if (number < 0 || number >= kMOST_TOKENS)
        {
            throw std::invalid_argument("a token has the number " + std::to_string(number));
        }
        mTokens[number] = &token;
    }
    uint32_t rank = 0;
    for (auto const& [left, right] : parts.merges)
    {
        int64_t const one = this->number(left), other = this->number(right), whole = this->number(left + right);
        if (one < 0 || other < 0 || whole < 0)
        {
            throw std::invalid_argument("a merge is of a token that its vocabulary lacks");
        }
        mMerges[keyOf(one, other)] = {rank++, static_cast<int32_t>(whole)};
    }
    for (int byte = 0; byte < 256; ++byte)
    {
        char name[8];
        std::snprintf(name, sizeof name, "<0x%02X>", static_cast<unsigned>(byte));
        mBytes[byte] = this->number(name);
    }
    if (parts.hasUnknown)
    {
        mUnknown = this->number(parts.unknown);
        if (mUnknown < 0)
        {
            throw std::invalid_argument("its unknown token is none of its vocabulary");
        }
    }
}

int64_t Bpe::number(std::string const& token) const
{
    auto const found = mVocabulary.find(token);
    return found == mVocabulary.end() ? -1 : found->second;
}

std::string const* Bpe::token(int64_t number) const
{
    auto const found = mTokens.find(number);
    return found == mTokens.end() ? nullptr : found->second;
}

Bpe::Merge const* Bpe::merge(int64_t left, int64_t right) const
{
    auto const found = mMerges.find(keyOf(left, right));
    return found == mMerges.end() ? nullptr : &found->second;
}

std::vector<int64_t> Bpe::piecesOf(std::string const& word) const
{
    std::vector<int64_t> found;
    bool isUnknown = false; // characters that nothing stands for wait for one that is known
    for (size_t at = 0; at < word.size();)
    {
        size_t end = at + 1;
        while (end < word.size() && (static_cast<unsigned char>(word[end]) & 0xC0) == 0x80)
        {
            ++end;
        }
        std::string const letter = word.substr(at, end - at);
        at = end;
        int64_t const known = number(letter);
        if (known >= 0)
        {
            if (isUnknown)
            {
                found.push_back(mUnknown);
                isUnknown = false;
            }
            found.push_back(known);
            continue;
        }
        bool hasBytes = mFallsBackToBytes;
        for (char const byte : letter)
        {
            hasBytes = hasBytes && mBytes[static_cast<unsigned char>(byte)] >= 0;
        }
        if (hasBytes)
        {
            for (char const byte : letter)
            {
                found.push_back(mBytes[static_cast<unsigned char>(byte)]);
            }
        }
        else if (mUnknown >= 0)
        {
            if (isUnknown && !mFusesUnknown)
            {
                found.push_back(mUnknown);
            }
            isUnknown = true;
        }
    }
    if (isUnknown)
    {
        found.push_back(mUnknown);
    }
    return found;
}

void Bpe::encode(std::string const& word, std::vector<int64_t>& into) const
{
    if (mTakesWholeWords)
    {
        int64_t const whole = number(word);
        if (whole >= 0)
        {
            into.push_back(whole);
            return;
        }
    }
    std::vector<int64_t> const tokens = piecesOf(word);
    std::vector<Piece> pieces;
    pieces.reserve(tokens.size());
    auto const count = static_cast<int32_t>(tokens.size());
    for (int32_t at = 0; at < count; ++at)
    {
        pieces.push_back({tokens[static_cast<size_t>(at)], at - 1, at + 1 < count ? at + 1 : -1, false});
    }
    struct Next
    {
        uint32_t rank;
        int32_t at;
        int32_t whole;

        bool operator<(Next const& other) const noexcept
        {
            return rank != other.rank ? rank > other.rank : at > other.at; // the smallest is on top
        }
    };
    std::priority_queue<Next> waiting;
    auto const look = [&](int32_t left, int32_t right)
    {
        Merge const* const found =
            merge(pieces[static_cast<size_t>(left)].token, pieces[static_cast<size_t>(right)].token);
        if (found != nullptr)
        {
            waiting.push({found->rank, left, found->whole});
        }
    };
    for (int32_t at = 0; at + 1 < count; ++at)
    {
        look(at, at + 1);
    }
    while (!waiting.empty())
    {
        Next const next = waiting.top();
        waiting.pop();
        Piece& left = pieces[static_cast<size_t>(next.at)];
        if (left.isGone || left.behind < 0)
        {
            continue;
        }
        Piece& right = pieces[static_cast<size_t>(left.behind)];
        Merge const* const now = merge(left.token, right.token);
        if (now == nullptr || now->whole != next.whole)
        {
            continue; // one of the two has become part of another
        }
        left.token = next.whole;
        left.behind = right.behind;
        right.isGone = true;
        if (right.behind >= 0)
        {
            pieces[static_cast<size_t>(right.behind)].before = next.at;
            look(next.at, right.behind);
        }
        if (left.before >= 0)
        {
            look(left.before, next.at);
        }
    }
    for (Piece const& piece : pieces)
    {
        if (!piece.isGone)
        {
            into.push_back(piece.token);
        }
    }
}

} // namespace trtc::runtime
