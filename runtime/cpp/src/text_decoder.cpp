// Tokens become a text: the decoders of a `tokenizer.json`.

#include "text_steps.h"
#include "text_steps_read.h"

namespace trtc::runtime
{

using namespace steps;

namespace
{

constexpr size_t kMOST_STRIPPED = 65536;

} // namespace

Decoder::Decoder(Json const* from)
{
    if (from != nullptr)
    {
        mIsThere = true;
        add(*from);
    }
}

void Decoder::add(Json const& from)
{
    std::string const kind = kindOf(from, "decoder");
    Step made{};
    if (kind == "Sequence")
    {
        for (Json const& each : listAt(from, "decoders"))
        {
            add(each);
        }
        return;
    }
    if (kind == "ByteLevel" || kind == "ByteFallback" || kind == "Fuse")
    {
        made.what = kind == "ByteLevel" ? Step::Do::kBYTE_LEVEL
            : kind == "Fuse"            ? Step::Do::kFUSE
                                        : Step::Do::kBYTE_FALLBACK;
    }
    else if (kind == "Replace")
    {
        made.what = Step::Do::kREPLACE;
        readPattern(from, made.literal, made.pattern);
        made.with = textAt(from, "content");
    }
    else if (kind == "Strip")
    {
        made.what = Step::Do::kSTRIP;
        std::u32string const letter = wide(textAt(from, "content"));
        Json const* const start = from.find("start");
        Json const* const stop = from.find("stop");
        if (letter.size() != 1 || start == nullptr || !start->is(Json::Kind::kINT) || start->integer < 0
            || start->integer > static_cast<int64_t>(kMOST_STRIPPED))
        {
            throw std::invalid_argument("a Strip has no content of one character, or no start");
        }
        if (stop == nullptr || !stop->is(Json::Kind::kINT) || stop->integer != 0)
        {
            refuse("decoder", "Strip of the end");
        }
        made.letter = letter[0];
        made.count = static_cast<size_t>(start->integer);
    }
    else if (kind == "Metaspace")
    {
        Spaces const spaces(from);
        made.what = Step::Do::kSPACES;
        made.letter = spaces.letter;
        made.dropsFirst = spaces.prepends != "never";
    }
    else
    {
        refuse("decoder", kind);
    }
    if (mSteps.size() >= kMOST_STEPS)
    {
        throw std::invalid_argument("it has too many steps");
    }
    mSteps.push_back(std::move(made));
}

bool Decoder::fallsBackToBytes() const noexcept
{
    for (Step const& step : mSteps)
    {
        if (step.what == Step::Do::kBYTE_FALLBACK)
        {
            return true;
        }
    }
    return false;
}

namespace
{

std::string byteLevel(std::vector<std::string> const& tokens)
{
    std::string bytes;
    for (std::string const& token : tokens)
    {
        size_t const before = bytes.size();
        for (char32_t const letter : charactersOfAny(token))
        {
            int const byte = byteOf(letter);
            if (byte < 0)
            {
                bytes.resize(before); // it is none of the byte-level vocabulary: itself
                bytes += token;
                break;
            }
            bytes += static_cast<char>(byte);
        }
    }
    return utf8Of(charactersOfAny(bytes));
}

//! The byte of "<0x4F>"; -1: it is none.
int byteNamed(std::string const& token)
{
    if (token.size() != 6 || token.compare(0, 3, "<0x") != 0 || token[5] != '>')
    {
        return -1;
    }
    int found = 0;
    for (size_t at = token[3] == '+' ? 4 : 3; at < 5; ++at)
    {
        char const each = token[at];
        int const digit = each >= '0' && each <= '9' ? each - '0'
            : each >= 'A' && each <= 'F'             ? each - 'A' + 10
            : each >= 'a' && each <= 'f'             ? each - 'a' + 10
                                                     : -1;
        if (digit < 0)
        {
            return -1;
        }
        found = found * 16 + digit;
    }
    return found;
}

std::vector<std::string> bytesTogether(std::vector<std::string> const& tokens)
{
    std::vector<std::string> found;
    std::string bytes;
    auto const put = [&]
    {
        if (charactersOf(bytes))
        {
            found.push_back(bytes);
        }
        else
        {
            found.insert(found.end(), bytes.size(), "\xEF\xBF\xBD");
        }
        bytes.clear();
    };
    for (std::string const& token : tokens)
    {
        int const byte = byteNamed(token);
        if (byte >= 0)
        {
            bytes += static_cast<char>(byte);
            continue;
        }
        if (!bytes.empty())
        {
            put();
        }
        found.push_back(token);
    }
    if (!bytes.empty())
    {
        put();
    }
    return found;
}

} // namespace

std::string Decoder::operator()(std::vector<std::string> tokens) const
{
    for (Step const& step : mSteps)
    {
        switch (step.what)
        {
        case Step::Do::kBYTE_LEVEL: tokens = {byteLevel(tokens)}; break;
        case Step::Do::kBYTE_FALLBACK: tokens = bytesTogether(tokens); break;
        case Step::Do::kFUSE:
        {
            std::string whole;
            for (std::string const& token : tokens)
            {
                whole += token;
            }
            tokens = {whole};
            break;
        }
        case Step::Do::kREPLACE:
            for (std::string& token : tokens)
            {
                token = step.pattern ? utf8Of(replacedAll(charactersOfAny(token), *step.pattern, wide(step.with)))
                                     : replaced(token, step.literal, step.with);
            }
            break;
        case Step::Do::kSTRIP:
            for (std::string& token : tokens)
            {
                std::string letter;
                appendUtf8(step.letter, letter);
                size_t at = 0;
                for (size_t count = 0; count < step.count && token.compare(at, letter.size(), letter) == 0; ++count)
                {
                    at += letter.size();
                }
                token.erase(0, at);
            }
            break;
        case Step::Do::kSPACES:
            for (size_t at = 0; at < tokens.size(); ++at)
            {
                std::string letter;
                appendUtf8(step.letter, letter);
                tokens[at] = replaced<std::string>(tokens[at], letter, at == 0 && step.dropsFirst ? "" : " ");
            }
            break;
        }
    }
    std::string found;
    for (size_t at = 0; at < tokens.size(); ++at)
    {
        found += (at != 0 && !mIsThere ? " " : "") + tokens[at];
    }
    return found;
}

} // namespace trtc::runtime
