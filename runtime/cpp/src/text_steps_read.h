// How the steps of a `tokenizer.json` are read, and what several of them do.
#pragma once

#include "error.h"
#include "text_steps.h"
#include "unicode.h"

#include <array>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace trtc::runtime::steps
{

constexpr size_t kMOST_STEPS = 256;

inline std::string kindOf(Json const& from, char const* what)
{
    Json const* const type = from.find("type");
    if (type == nullptr || !type->is(Json::Kind::kSTRING))
    {
        throw std::invalid_argument(std::string("a ") + what + " has no type");
    }
    return type->text;
}

[[noreturn]] inline void refuse(char const* what, std::string const& kind)
{
    throw unsupportedError(std::string("The tokenizer has the ") + what + " '" + shown(kind, 100)
        + "', which this library does not read; give the numbers of tokens, or run this model from Python.");
}

inline std::string textAt(Json const& from, char const* name, char const* fallback = nullptr)
{
    Json const* const found = from.find(name);
    if ((found == nullptr || !found->is(Json::Kind::kSTRING)) && fallback == nullptr)
    {
        throw std::invalid_argument(std::string("a step has no text '") + name + "'");
    }
    return found != nullptr && found->is(Json::Kind::kSTRING) ? found->text : fallback;
}

inline bool flagAt(Json const& from, char const* name, bool fallback)
{
    Json const* const found = from.find(name);
    return found != nullptr && found->is(Json::Kind::kBOOL) ? found->truth : fallback;
}

inline std::vector<Json> const& listAt(Json const& from, char const* name)
{
    Json const* const found = from.find(name);
    if (found == nullptr || !found->is(Json::Kind::kLIST) || found->items.size() > kMOST_STEPS)
    {
        throw std::invalid_argument(
            std::string("a sequence of steps has no list '") + name + "' of at most " + std::to_string(kMOST_STEPS));
    }
    return found->items;
}

inline std::u32string wide(std::string const& text)
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

inline std::u32string replacedAll(std::u32string const& text, Regex const& pattern, std::u32string const& with)
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
inline std::array<char32_t, 256> const& letters()
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
inline int byteOf(char32_t letter)
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

} // namespace trtc::runtime::steps
