#include "tokenizer.h"

#include "error.h"
#include "unicode.h"

#include <algorithm>
#include <stdexcept>

namespace trtc::runtime
{
namespace
{

constexpr size_t kLARGEST = size_t{256} << 20;
constexpr int64_t kMOST_TOKENS = int64_t{1} << 24;

//! Takes the vocabulary and the merges, of which a tree would be large.
class Words final : public JsonSink
{
public:
    BpeParts parts;
    bool isOdd = false; //!< it is of another form, as other models have it

    bool takes(std::vector<std::string> const& names) override
    {
        bool const isIt = names.size() == 2 && names[0] == "model" && (names[1] == "vocab" || names[1] == "merges");
        mIsMerges = isIt && names[1] == "merges";
        mDepth = 0;
        return isIt;
    }

    void begins() override
    {
        ++mDepth;
        mPair.clear();
    }

    void ends() override
    {
        --mDepth;
        if (mIsMerges && mDepth == 1)
        {
            put();
        }
    }

    void name(std::string const& text) override
    {
        mName = text;
    }

    void text(std::string const& value) override
    {
        mPair.push_back(value);
        if (!mIsMerges)
        {
            isOdd = true;
        }
        else if (mDepth == 1) // as it was written formerly: "a b"
        {
            size_t const space = value.find(' ');
            mPair.clear();
            if (value.compare(0, 8, "#version") == 0)
            {
                return;
            }
            if (space != std::string::npos && value.find(' ', space + 1) == std::string::npos)
            {
                mPair = {value.substr(0, space), value.substr(space + 1)};
            }
            put();
        }
    }

    void integer(int64_t value) override
    {
        isOdd = isOdd || mIsMerges || mDepth != 1;
        if (!isOdd)
        {
            parts.vocabulary[mName] = value;
        }
    }

    void other() override
    {
        isOdd = true;
    }

private:
    bool mIsMerges = false;
    size_t mDepth = 0;
    std::string mName;
    std::vector<std::string> mPair;

    void put()
    {
        if (mPair.size() != 2)
        {
            isOdd = true;
        }
        else
        {
            parts.merges.emplace_back(std::move(mPair[0]), std::move(mPair[1]));
        }
        mPair.clear();
    }
};

//! A member that is there and not null.
Json const* given(Json const& from, char const* name)
{
    Json const* const found = from.find(name);
    return found == nullptr || found->is(Json::Kind::kNULL) ? nullptr : found;
}

bool isTrue(Json const& from, char const* name)
{
    Json const* const found = from.find(name);
    return found != nullptr && found->is(Json::Kind::kBOOL) && found->truth;
}

std::string textOr(Json const* from, char const* fallback)
{
    return from != nullptr && from->is(Json::Kind::kSTRING) ? from->text : fallback;
}

[[noreturn]] void refuse(std::string const& what)
{
    throw unsupportedError("The tokenizer has " + what
        + ", which this library does not read; give the numbers of tokens, or run this model from Python.");
}

void readModel(Json const& data, Words& words)
{
    Json const* const model = given(data, "model");
    if (model == nullptr || !model->is(Json::Kind::kOBJECT))
    {
        throw std::invalid_argument("it has no model");
    }
    std::string const type = textOr(given(*model, "type"), "BPE");
    if (type != "BPE")
    {
        refuse("a model of the kind '" + shown(type, 60) + "'");
    }
    if (words.isOdd)
    {
        throw std::invalid_argument("its vocabulary or its merges are not of the form that BPE has");
    }
    for (char const* const name : {"continuing_subword_prefix", "end_of_word_suffix"})
    {
        if (!textOr(given(*model, name), "").empty())
        {
            refuse(std::string("a ") + name);
        }
    }
    Json const* const dropout = given(*model, "dropout");
    if (dropout != nullptr && dropout->number != 0)
    {
        refuse("a dropout");
    }
    Json const* const unknown = given(*model, "unk_token");
    words.parts.hasUnknown = unknown != nullptr;
    words.parts.unknown = textOr(unknown, "");
    words.parts.fusesUnknown = isTrue(*model, "fuse_unk");
    words.parts.fallsBackToBytes = isTrue(*model, "byte_fallback");
    words.parts.takesWholeWords = isTrue(*model, "ignore_merges");
}

bool isByte(std::string const& token)
{
    auto const isDigit = [](char each)
    { return (each >= '0' && each <= '9') || ((each | 0x20) >= 'a' && (each | 0x20) <= 'f'); };
    return token.size() == 6 && token.compare(0, 3, "<0x") == 0 && token[5] == '>' && isDigit(token[3])
        && isDigit(token[4]);
}

} // namespace

Tokenizer::Tokenizer(char const* data, size_t bytes, std::string const& where, trtc_status damaged)
{
    try
    {
        JsonLimits limits;
        limits.bytes = kLARGEST;
        limits.text = size_t{1} << 24;
        Words words;
        Json const read = parseJson(data, bytes, limits, &words);
        readModel(read, words);
        mModel.emplace(std::move(words.parts));
        if (Json const* const normalizer = given(read, "normalizer"))
        {
            mNormalizer.emplace(*normalizer);
        }
        if (Json const* const cutter = given(read, "pre_tokenizer"))
        {
            mCutter.emplace(*cutter);
        }
        mDecoder.emplace(given(read, "decoder"));
        readAdded(read);
        if (Json const* const around = given(read, "post_processor"))
        {
            readTemplate(*around);
        }
        for (auto const& [token, number] : mModel->vocabulary())
        {
            mSize = std::max(mSize, number + 1);
            if (mDecoder->fallsBackToBytes() && isByte(token))
            {
                mBytes.insert(number);
            }
        }
    }
    catch (std::invalid_argument const& error)
    {
        throw Error(damaged, where + " is no tokenizer that can be read: " + error.what() + "; export it again.");
    }
}

void Tokenizer::readAdded(Json const& data)
{
    Json const* const list = given(data, "added_tokens");
    std::vector<Added> plain, special;
    int64_t most = -1; // of their numbers
    for (size_t at = 0; list != nullptr && at < list->items.size(); ++at)
    {
        Json const& from = list->items[at];
        Added made;
        made.content = textOr(given(from, "content"), "");
        made.stripsLeft = isTrue(from, "lstrip");
        made.stripsRight = isTrue(from, "rstrip");
        made.isNormalized = isTrue(from, "normalized");
        made.isSpecial = isTrue(from, "special");
        if (made.content.empty())
        {
            continue;
        }
        if (isTrue(from, "single_word"))
        {
            refuse(
                "the added token '" + shown(made.content, 60) + "', which is one as a whole word only (single_word)");
        }
        auto const before = mAddedNumbers.find(made.content);
        bool const isKnown = before != mAddedNumbers.end() && mAdded.at(before->second) == made;
        if (made.isSpecial && mSpecial.insert(made.content).second)
        {
            special.push_back(made);
        }
        if (isKnown)
        {
            continue;
        }
        int64_t number = numberOf(made.content).value_or(-1);
        if (number < 0)
        {
            auto const words = static_cast<int64_t>(mModel->vocabulary().size());
            number = std::max(most + 1, words);
        }
        most = std::max(most, number);
        mAddedNumbers[made.content] = number;
        mAdded[number] = made;
        if (mSpecial.count(made.content) == 0)
        {
            plain.push_back(made);
        }
    }
    special.insert(special.end(), plain.begin(), plain.end());
    for (Added const& each : special)
    {
        std::u32string text = *charactersOf(each.content);
        if (each.isNormalized && mNormalizer)
        {
            text = (*mNormalizer)(text);
        }
        if (text.empty())
        {
            refuse("the added token '" + shown(each.content, 60) + "', of which its normalizer leaves nothing");
        }
        (each.isNormalized ? mNormalized : mPlain).add(text, *numberOf(each.content));
    }
    for (auto const& [number, added] : mAdded)
    {
        if (number >= kMOST_TOKENS)
        {
            throw std::invalid_argument("a token has the number " + std::to_string(number));
        }
        mSize = std::max(mSize, number + 1);
        if (added.isSpecial)
        {
            mSilent.insert(number);
        }
        if (mDecoder->fallsBackToBytes() && isByte(added.content))
        {
            mBytes.insert(number);
        }
    }
}

void Tokenizer::readTemplate(Json const& from)
{
    std::string const type = textOr(given(from, "type"), "");
    if (type == "Sequence")
    {
        Json const* const list = given(from, "processors");
        for (size_t at = 0; list != nullptr && at < list->items.size(); ++at)
        {
            readTemplate(list->items[at]);
        }
        return;
    }
    if (type == "ByteLevel") // it changes where a token says that it comes from, and no token
    {
        return;
    }
    bool const isBert = type == "BertProcessing" || type == "RobertaProcessing";
    if ((type != "TemplateProcessing" && !isBert) || !mBefore.empty() || !mBehind.empty())
    {
        refuse(
            "the post-processor '" + shown(type, 60) + "'" + (isBert || type == "TemplateProcessing" ? " twice" : ""));
    }
    if (isBert)
    {
        for (bool const isFront : {true, false})
        {
            Json const* const pair = given(from, isFront ? "cls" : "sep");
            if (pair == nullptr || pair->items.size() != 2 || !pair->items[1].is(Json::Kind::kINT))
            {
                throw std::invalid_argument("its post-processor names no tokens");
            }
            (isFront ? mBefore : mBehind).push_back(pair->items[1].integer);
        }
        return;
    }
    Json const* const list = given(from, "single");
    Json const* const known = given(from, "special_tokens");
    size_t sequences = 0;
    for (size_t at = 0; list != nullptr && at < list->items.size(); ++at)
    {
        Json const* const token = given(list->items[at], "SpecialToken");
        if (token == nullptr)
        {
            ++sequences;
            continue;
        }
        Json const* const named = known == nullptr ? nullptr : known->find(textOr(given(*token, "id"), ""));
        Json const* const ids = named == nullptr ? nullptr : given(*named, "ids");
        if (ids == nullptr || !ids->is(Json::Kind::kLIST))
        {
            throw std::invalid_argument("its post-processor names a token that it does not know");
        }
        for (Json const& id : ids->items)
        {
            (sequences == 0 ? mBefore : mBehind).push_back(id.is(Json::Kind::kINT) ? id.integer : -1);
        }
    }
    if (sequences != 1)
    {
        throw std::invalid_argument("its post-processor does not take one text");
    }
}

std::optional<int64_t> Tokenizer::numberOf(std::string const& token) const
{
    auto const added = mAddedNumbers.find(token);
    int64_t const found = added != mAddedNumbers.end() ? added->second : mModel->number(token);
    return found < 0 ? std::nullopt : std::optional(found);
}

std::string const* Tokenizer::textOf(int64_t token) const
{
    auto const added = mAdded.find(token);
    return added != mAdded.end() ? &added->second.content : mModel->token(token);
}

std::optional<int64_t> Tokenizer::special(std::string const& text) const
{
    for (auto const& [number, added] : mAdded)
    {
        if (added.content == text)
        {
            return number;
        }
    }
    return std::nullopt;
}

std::optional<bool> Tokenizer::isOpen(int64_t token) const
{
    if (mSilent.count(token) != 0 || textOf(token) == nullptr)
    {
        return std::nullopt;
    }
    return mBytes.count(token) != 0;
}

void Tokenizer::Finder::add(std::u32string const& text, int64_t token)
{
    size_t at = 0;
    for (char32_t const letter : text)
    {
        size_t const next = mNodes[at].next.emplace(letter, mNodes.size()).first->second;
        if (next == mNodes.size())
        {
            mNodes.emplace_back();
        }
        at = next;
    }
    mNodes[at].token = mNodes[at].token < 0 ? token : mNodes[at].token;
}

size_t Tokenizer::Finder::longest(std::u32string const& text, size_t at, int64_t& token) const
{
    size_t found = 0, node = 0;
    for (size_t place = at; place < text.size(); ++place)
    {
        auto const next = mNodes[node].next.find(text[place]);
        if (next == mNodes[node].next.end())
        {
            break;
        }
        node = next->second;
        if (mNodes[node].token >= 0)
        {
            token = mNodes[node].token;
            found = place + 1 - at;
        }
    }
    return found;
}

void Tokenizer::split(Finder const& finder, Part const& part, std::vector<Part>& into) const
{
    auto const put = [&](size_t begin, size_t end, int64_t token)
    {
        Part made;
        made.text = part.text.substr(begin, end - begin);
        made.isFirst = part.isFirst && begin == 0;
        made.token = token;
        into.push_back(std::move(made));
    };
    std::u32string const& text = part.text;
    size_t last = 0;
    for (size_t at = 0; at < text.size();)
    {
        int64_t token = -1;
        size_t const length = finder.longest(text, at, token);
        if (length == 0)
        {
            ++at;
            continue;
        }
        size_t begin = at, end = at + length;
        at = end;
        Added const& added = mAdded.at(token);
        while (added.stripsLeft && begin > last && isSpace(text[begin - 1]))
        {
            --begin;
        }
        while (added.stripsRight && end < text.size() && isSpace(text[end]))
        {
            ++end;
        }
        if (begin > last)
        {
            put(last, begin, -1);
        }
        put(begin, end, token);
        last = end;
    }
    if (last < text.size())
    {
        put(last, text.size(), -1);
    }
}

std::vector<int64_t> Tokenizer::encode(std::string_view text, bool special) const
{
    auto characters = charactersOf(text);
    if (!characters)
    {
        throw configError("The text is no UTF-8; give one that is.");
    }
    Part whole;
    whole.text = std::move(*characters);
    whole.isFirst = true;
    std::vector<Part> apart, parts;
    split(mPlain, whole, apart);
    for (Part& part : apart)
    {
        if (part.token >= 0)
        {
            parts.push_back(std::move(part));
            continue;
        }
        part.text = mNormalizer ? (*mNormalizer)(std::move(part.text)) : part.text;
        split(mNormalized, part, parts);
    }
    if (mCutter)
    {
        parts = (*mCutter)(std::move(parts));
    }
    std::vector<int64_t> found;
    if (special)
    {
        found = mBefore;
    }
    for (Part const& part : parts)
    {
        if (part.token >= 0)
        {
            found.push_back(part.token);
        }
        else
        {
            mModel->encode(utf8Of(part.text), found);
        }
    }
    if (special)
    {
        found.insert(found.end(), mBehind.begin(), mBehind.end());
    }
    return found;
}

std::string Tokenizer::decode(int64_t const* tokens, size_t count) const
{
    std::vector<std::string> texts;
    for (size_t at = 0; at < count; ++at)
    {
        std::string const* const text = textOf(tokens[at]);
        if (text != nullptr && mSpecial.count(*text) == 0)
        {
            texts.push_back(*text);
        }
    }
    return (*mDecoder)(std::move(texts));
}

} // namespace trtc::runtime
