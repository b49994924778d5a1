#include "text_steps.h"

#include "error.h"
#include "unicode.h"

#include <array>
#include <stdexcept>

namespace trtc::runtime
{
namespace
{

char const* const kGPT2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr size_t kMOST_STEPS = 256, kMOST_STRIPPED = 65536;

std::string kindOf(Json const& from, char const* what)
{
    Json const* const type = from.find("type");
    if (type == nullptr || !type->is(Json::Kind::kSTRING))
    {
        throw std::invalid_argument(std::string("a ") + what + " has no type");
    }
    return type->text;
}

[[noreturn]] void refuse(char const* what, std::string const& kind)
{
    throw unsupportedError(std::string("The tokenizer has the ") + what + " '" + shown(kind, 100)
        + "', which this library does not read; give the numbers of tokens, or run this model from Python.");
}

std::string textAt(Json const& from, char const* name, char const* fallback = nullptr)
{
    Json const* const found = from.find(name);
    if ((found == nullptr || !found->is(Json::Kind::kSTRING)) && fallback == nullptr)
    {
        throw std::invalid_argument(std::string("a step has no text '") + name + "'");
    }
    return found != nullptr && found->is(Json::Kind::kSTRING) ? found->text : fallback;
}

bool flagAt(Json const& from, char const* name, bool fallback)
{
    Json const* const found = from.find(name);
    return found != nullptr && found->is(Json::Kind::kBOOL) ? found->truth : fallback;
}

std::vector<Json> const& listAt(Json const& from, char const* name)
{
    Json const* const found = from.find(name);
    if (found == nullptr || !found->is(Json::Kind::kLIST) || found->items.size() > kMOST_STEPS)
    {
        throw std::invalid_argument(
            std::string("a sequence of steps has no list '") + name + "' of at most " + std::to_string(kMOST_STEPS));
    }
    return found->items;
}

std::u32string wide(std::string const& text)
{
    return *charactersOf(text); // JSON is UTF-8
}

//! A text, or a regular expression.
template <typename Text>
void readPattern(Json const& from, Text& literal, std::optional<Regex>& pattern)
{
    Json const* const found = from.find("pattern");
    Json const* const text = found == nullptr ? nullptr : found->find("String");
    Json const* const regex = found == nullptr ? nullptr : found->find("Regex");
    Json const* const given = text != nullptr ? text : regex;
    if (given == nullptr || !given->is(Json::Kind::kSTRING) || given->text.empty())
    {
        throw std::invalid_argument("a step has no pattern");
    }
    if (regex != nullptr)
    {
        pattern.emplace(regex->text);
    }
    else if constexpr (std::is_same_v<Text, std::string>)
    {
        literal = given->text;
    }
    else
    {
        literal = wide(given->text);
    }
}

template <typename Text>
Text replaced(Text const& text, Text const& what, Text const& with)
{
    Text found;
    size_t at = 0;
    for (size_t next; (next = text.find(what, at)) != Text::npos; at = next + what.size())
    {
        found.append(text, at, next - at).append(with);
    }
    return found.append(text, at, Text::npos);
}

std::u32string replacedAll(std::u32string const& text, Regex const& pattern, std::u32string const& with)
{
    std::u32string found;
    size_t at = 0;
    for (auto const& [begin, end] : pattern.find(text))
    {
        found.append(text, at, begin - at).append(with);
        at = end;
    }
    return found.append(text, at, std::u32string::npos);
}

//! The character that stands for each byte in a byte-level vocabulary: itself where it is printable, else one from 256
//! on.
std::array<char32_t, 256> const& letters()
{
    static std::array<char32_t, 256> const kFOUND = []
    {
        std::array<char32_t, 256> found{};
        char32_t next = 256;
        for (char32_t byte = 0; byte < 256; ++byte)
        {
            bool const isPlain = (byte >= 33 && byte <= 126) || (byte >= 161 && byte <= 172) || byte >= 174;
            found[byte] = isPlain ? byte : next++;
        }
        return found;
    }();
    return kFOUND;
}

//! The byte that a character stands for; -1: none.
int byteOf(char32_t letter)
{
    static std::array<int16_t, 512> const kFOUND = []
    {
        std::array<int16_t, 512> found{};
        found.fill(-1);
        for (size_t byte = 0; byte < 256; ++byte)
        {
            found[letters()[byte]] = static_cast<int16_t>(byte);
        }
        return found;
    }();
    return letter < kFOUND.size() ? kFOUND[letter] : -1;
}

//! Of a step that writes spaces as another character: which, and whether one is put in front.
struct Spaces
{
    char32_t letter;
    std::string prepends;

    explicit Spaces(Json const& from)
    {
        std::u32string const found = wide(textAt(from, "replacement"));
        if (found.size() != 1)
        {
            throw std::invalid_argument("a Metaspace has no replacement of one character");
        }
        letter = found[0];
        prepends = textAt(from, "prepend_scheme", flagAt(from, "add_prefix_space", true) ? "always" : "never");
        if (prepends != "always" && prepends != "first" && prepends != "never")
        {
            throw std::invalid_argument("a Metaspace has an unknown prepend_scheme");
        }
    }
};

} // namespace

Normalizer::Normalizer(Json const& from)
{
    add(from);
}

void Normalizer::add(Json const& from)
{
    std::string const kind = kindOf(from, "normalizer");
    Step made{};
    if (kind == "Sequence")
    {
        for (Json const& each : listAt(from, "normalizers"))
        {
            add(each);
        }
        return;
    }
    if (kind == "Prepend")
    {
        made.what = Step::Do::kPREPEND;
        made.with = wide(textAt(from, "prepend"));
    }
    else if (kind == "Replace")
    {
        made.what = Step::Do::kREPLACE;
        readPattern(from, made.literal, made.pattern);
        made.with = wide(textAt(from, "content"));
    }
    else if (kind == "NFC" || kind == "NFD")
    {
        made.what = kind == "NFC" ? Step::Do::kCOMPOSE : Step::Do::kDECOMPOSE;
    }
    else
    {
        refuse("normalizer", kind);
    }
    if (mSteps.size() >= kMOST_STEPS)
    {
        throw std::invalid_argument("it has too many steps");
    }
    mSteps.push_back(std::move(made));
}

std::u32string Normalizer::operator()(std::u32string text) const
{
    for (Step const& step : mSteps)
    {
        switch (step.what)
        {
        case Step::Do::kPREPEND:
            if (!text.empty())
            {
                text.insert(0, step.with);
            }
            break;
        case Step::Do::kREPLACE:
            text = step.pattern ? replacedAll(text, *step.pattern, step.with) : replaced(text, step.literal, step.with);
            break;
        case Step::Do::kCOMPOSE: text = normalized(text, true); break;
        case Step::Do::kDECOMPOSE: text = normalized(text, false); break;
        }
    }
    return text;
}

Cutter::Cutter(Json const& from)
{
    add(from);
}

void Cutter::add(Json const& from)
{
    std::string const kind = kindOf(from, "pre-tokenizer");
    Step made{};
    if (kind == "Sequence")
    {
        for (Json const& each : listAt(from, "pretokenizers"))
        {
            add(each);
        }
        return;
    }
    if (kind == "Split")
    {
        made.what = Step::Do::kSPLIT;
        readPattern(from, made.literal, made.pattern);
        made.isInverted = flagAt(from, "invert", false);
        std::string const keep = textAt(from, "behavior");
        made.keep = keep == "Isolated"     ? Keep::kISOLATED
            : keep == "Removed"            ? Keep::kREMOVED
            : keep == "MergedWithPrevious" ? Keep::kWITH_PREVIOUS
            : keep == "MergedWithNext"     ? Keep::kWITH_NEXT
                                           : Keep::kCONTIGUOUS;
        if (made.keep == Keep::kCONTIGUOUS && keep != "Contiguous")
        {
            refuse("behavior of a split", keep);
        }
    }
    else if (kind == "Digits")
    {
        made.what = Step::Do::kDIGITS;
        made.keep = flagAt(from, "individual_digits", false) ? Keep::kISOLATED : Keep::kCONTIGUOUS;
    }
    else if (kind == "Metaspace")
    {
        Spaces const spaces(from);
        made.what = Step::Do::kSPACES;
        made.space = spaces.letter;
        made.literal = {spaces.letter};
        made.keep = Keep::kWITH_NEXT;
        made.splits = flagAt(from, "split", true);
        made.prepends = spaces.prepends == "always";
        made.prependsToFirst = spaces.prepends == "first";
    }
    else if (kind == "ByteLevel")
    {
        made.what = Step::Do::kBYTES;
        made.prepends = flagAt(from, "add_prefix_space", true);
        made.space = U' ';
        made.splits = flagAt(from, "use_regex", true);
        made.pattern.emplace(kGPT2);
    }
    else
    {
        refuse("pre-tokenizer", kind);
    }
    if (mSteps.size() >= kMOST_STEPS)
    {
        throw std::invalid_argument("it has too many steps");
    }
    mSteps.push_back(std::move(made));
}

std::vector<std::pair<size_t, size_t>> Cutter::matches(Step const& step, std::u32string const& text)
{
    if (step.pattern)
    {
        return step.pattern->find(text);
    }
    std::vector<std::pair<size_t, size_t>> found;
    if (step.what == Step::Do::kDIGITS)
    {
        for (size_t at = 0; at < text.size(); ++at)
        {
            if (isNumber(text[at]))
            {
                found.emplace_back(at, at + 1);
            }
        }
        return found;
    }
    for (size_t at = 0; (at = text.find(step.literal, at)) != std::u32string::npos; at += step.literal.size())
    {
        found.emplace_back(at, at + step.literal.size());
    }
    return found;
}

void Cutter::split(Step const& step, Part const& part, std::vector<Part>& into)
{
    struct Span
    {
        size_t begin, end;
        bool isMatch;
    };
    std::vector<Span> spans, kept;
    size_t last = 0;
    for (auto const& [begin, end] : matches(step, part.text))
    {
        if (begin > last)
        {
            spans.push_back({last, begin, step.isInverted});
        }
        spans.push_back({begin, end, !step.isInverted});
        last = end;
    }
    if (last < part.text.size())
    {
        spans.push_back({last, part.text.size(), step.isInverted});
    }
    bool const isBackwards = step.keep == Keep::kWITH_NEXT;
    bool wasMatch = false;
    for (size_t count = 0; count < spans.size(); ++count)
    {
        Span const span = spans[isBackwards ? spans.size() - 1 - count : count];
        bool joins = false;
        switch (step.keep)
        {
        case Keep::kISOLATED: break;
        case Keep::kREMOVED:
            if (span.isMatch)
            {
                continue;
            }
            break;
        case Keep::kWITH_PREVIOUS:
        case Keep::kWITH_NEXT: joins = span.isMatch && !wasMatch && !kept.empty(); break;
        case Keep::kCONTIGUOUS: joins = span.isMatch == wasMatch && !kept.empty(); break;
        }
        wasMatch = span.isMatch;
        if (!joins)
        {
            kept.push_back(span);
        }
        else if (isBackwards)
        {
            kept.back().begin = span.begin;
        }
        else
        {
            kept.back().end = span.end;
        }
    }
    for (size_t count = 0; count < kept.size(); ++count)
    {
        Span const& span = kept[isBackwards ? kept.size() - 1 - count : count];
        Part made;
        made.text = part.text.substr(span.begin, span.end - span.begin);
        made.isFirst = part.isFirst && span.begin == 0;
        into.push_back(std::move(made));
    }
}

std::vector<Part> Cutter::operator()(std::vector<Part> parts) const
{
    for (Step const& step : mSteps)
    {
        std::vector<Part> next;
        for (Part& part : parts)
        {
            if (part.token >= 0)
            {
                next.push_back(std::move(part));
                continue;
            }
            if (step.what == Step::Do::kSPACES)
            {
                part.text = replaced<std::u32string>(part.text, U" ", {step.space});
            }
            bool const prepends = step.prepends || (step.prependsToFirst && part.isFirst);
            if (prepends && (part.text.empty() || part.text[0] != step.space))
            {
                part.text.insert(part.text.begin(), step.space);
            }
            if (step.splits)
            {
                split(step, part, next);
            }
            else if (!part.text.empty())
            {
                next.push_back(std::move(part));
            }
        }
        for (Part& part : next)
        {
            if (step.what == Step::Do::kBYTES && part.token < 0)
            {
                std::u32string written;
                for (char const byte : utf8Of(part.text))
                {
                    written += letters()[static_cast<unsigned char>(byte)];
                }
                part.text = std::move(written);
            }
        }
        parts = std::move(next);
    }
    return parts;
}

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
