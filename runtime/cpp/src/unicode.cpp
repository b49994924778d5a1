#include "unicode.h"

#include <algorithm>
#include <iterator>
#include <utility>
#include <vector>

namespace trtc::runtime
{
namespace
{

#include "unicode_tables.inc"

constexpr char32_t kBEYOND = 0x110000;
constexpr char32_t kREPLACEMENT = 0xFFFD;
constexpr size_t kNO_CHARACTER = 0;

//! Bytes of the character that begins at `at`; 0: none does, and `bad` has the bytes to replace by one U+FFFD.
size_t lengthAt(std::string_view text, size_t at, size_t& bad, char32_t& character) noexcept
{
    auto const byte = [&](size_t place) { return static_cast<unsigned char>(text[place]); };
    unsigned const first = byte(at);
    bad = 1;
    if (first < 0x80)
    {
        character = first;
        return 1;
    }
    size_t const length = first >= 0xF0 ? 4 : first >= 0xE0 ? 3 : 2;
    if (first < 0xC2 || first > 0xF4)
    {
        return kNO_CHARACTER;
    }
    unsigned low = 0x80, high = 0xBF; // of the second byte: neither longer than needed, nor half of a pair, nor beyond
    low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : low;
    high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : high;
    character = first & (0x7FU >> length);
    for (size_t place = 1; place < length; ++place)
    {
        if (at + place >= text.size() || byte(at + place) < low || byte(at + place) > high)
        {
            bad = place;
            return kNO_CHARACTER;
        }
        character = (character << 6) | (byte(at + place) & 0x3F);
        low = 0x80;
        high = 0xBF;
    }
    return length;
}

struct Category
{
    char32_t first;
    uint32_t number;
};

std::vector<Category> const& categories()
{
    static std::vector<Category> const kFOUND = []
    {
        std::vector<Category> found;
        char32_t first = 0;
        for (uint32_t const run : kCATEGORIES)
        {
            found.push_back({first, run & 31});
            first += run >> 5;
        }
        return found;
    }();
    return kFOUND;
}

template <size_t N>
bool isIn(uint32_t const (&toggles)[N], char32_t character) noexcept
{
    auto const above = std::upper_bound(std::begin(toggles), std::end(toggles), static_cast<uint32_t>(character));
    return (above - std::begin(toggles)) % 2 != 0;
}

uint32_t classOf(char32_t character) noexcept
{
    size_t low = 0, high = std::size(kCLASSES) / 3;
    while (low < high)
    {
        size_t const middle = (low + high) / 2;
        if (character < kCLASSES[3 * middle])
        {
            high = middle;
        }
        else if (character > kCLASSES[3 * middle + 1])
        {
            low = middle + 1;
        }
        else
        {
            return kCLASSES[3 * middle + 2];
        }
    }
    return 0;
}

struct Parts
{
    char32_t whole, first, second;
};

struct Canonical
{
    std::vector<Parts> apart;    //!< by the whole
    std::vector<Parts> together; //!< by the parts
};

Canonical const& canonical()
{
    static Canonical const kFOUND = []
    {
        Canonical found;
        int32_t whole = 0;
        for (size_t at = 0; at < std::size(kDECOMPOSED); at += 3)
        {
            whole += std::abs(kDECOMPOSED[at]);
            Parts const parts = {static_cast<char32_t>(whole), static_cast<char32_t>(kDECOMPOSED[at + 1]),
                static_cast<char32_t>(kDECOMPOSED[at + 2])};
            found.apart.push_back(parts);
            if (kDECOMPOSED[at] < 0)
            {
                found.together.push_back(parts);
            }
        }
        std::sort(found.together.begin(), found.together.end(), [](Parts const& one, Parts const& other)
            { return std::pair(one.first, one.second) < std::pair(other.first, other.second); });
        return found;
    }();
    return kFOUND;
}

// Syllables of Hangul are composed by arithmetic: The Unicode Standard, 3.12.
constexpr char32_t kSYLLABLE = 0xAC00, kLEAD = 0x1100, kVOWEL = 0x1161, kTAIL = 0x11A7;
constexpr char32_t kLEADS = 19, kVOWELS = 21, kTAILS = 28, kSYLLABLES = kLEADS * kVOWELS * kTAILS;

void decompose(char32_t character, std::u32string& out)
{
    if (character >= kSYLLABLE && character < kSYLLABLE + kSYLLABLES)
    {
        char32_t const at = character - kSYLLABLE;
        out += kLEAD + at / (kVOWELS * kTAILS);
        out += kVOWEL + at / kTAILS % kVOWELS;
        if (at % kTAILS != 0)
        {
            out += kTAIL + at % kTAILS;
        }
        return;
    }
    auto const& table = canonical().apart;
    auto const found = std::lower_bound(table.begin(), table.end(), character,
        [](Parts const& parts, char32_t wanted) { return parts.whole < wanted; });
    if (found == table.end() || found->whole != character)
    {
        out += character;
        return;
    }
    decompose(found->first, out);
    if (found->second != 0)
    {
        decompose(found->second, out);
    }
}

//! The character that two compose; 0: none.
char32_t composed(char32_t first, char32_t second) noexcept
{
    if (first >= kLEAD && first < kLEAD + kLEADS && second >= kVOWEL && second < kVOWEL + kVOWELS)
    {
        return kSYLLABLE + ((first - kLEAD) * kVOWELS + (second - kVOWEL)) * kTAILS;
    }
    if (first >= kSYLLABLE && first < kSYLLABLE + kSYLLABLES && (first - kSYLLABLE) % kTAILS == 0 && second > kTAIL
        && second < kTAIL + kTAILS)
    {
        return first + (second - kTAIL);
    }
    auto const& table = canonical().together;
    auto const found = std::lower_bound(table.begin(), table.end(), std::pair(first, second),
        [](Parts const& parts, std::pair<char32_t, char32_t> const& wanted)
        { return std::pair(parts.first, parts.second) < wanted; });
    return found != table.end() && found->first == first && found->second == second ? found->whole : 0;
}

} // namespace

std::optional<std::u32string> charactersOf(std::string_view text)
{
    std::u32string found;
    found.reserve(text.size());
    size_t bad = 0;
    for (size_t at = 0; at < text.size();)
    {
        char32_t character = 0;
        size_t const length = lengthAt(text, at, bad, character);
        if (length == kNO_CHARACTER)
        {
            return std::nullopt;
        }
        found += character;
        at += length;
    }
    return found;
}

std::u32string charactersOfAny(std::string_view text)
{
    std::u32string found;
    found.reserve(text.size());
    for (size_t at = 0; at < text.size();)
    {
        size_t bad = 0;
        char32_t character = 0;
        size_t const length = lengthAt(text, at, bad, character);
        found += length == kNO_CHARACTER ? kREPLACEMENT : character;
        at += length == kNO_CHARACTER ? bad : length;
    }
    return found;
}

void appendUtf8(char32_t character, std::string& out)
{
    auto const put = [&](char32_t bits) { out += static_cast<char>(static_cast<unsigned char>(bits)); };
    if (character < 0x80)
    {
        put(character);
        return;
    }
    if (character < 0x800)
    {
        put(0xC0 | character >> 6);
    }
    else
    {
        if (character < 0x10000)
        {
            put(0xE0 | character >> 12);
        }
        else
        {
            put(0xF0 | character >> 18);
            put(0x80 | (character >> 12 & 0x3F));
        }
        put(0x80 | (character >> 6 & 0x3F));
    }
    put(0x80 | (character & 0x3F));
}

std::string utf8Of(std::u32string_view text)
{
    std::string found;
    found.reserve(text.size());
    for (char32_t const each : text)
    {
        appendUtf8(each, found);
    }
    return found;
}

size_t countCharacters(std::string_view text) noexcept
{
    return static_cast<size_t>(std::count_if(
        text.begin(), text.end(), [](char each) { return (static_cast<unsigned char>(each) & 0xC0) != 0x80; }));
}

size_t offsetOf(std::string_view text, size_t number) noexcept
{
    for (size_t at = 0; at < text.size(); ++at)
    {
        if ((static_cast<unsigned char>(text[at]) & 0xC0) != 0x80 && number-- == 0)
        {
            return at;
        }
    }
    return text.size();
}

uint32_t categoryOf(char32_t character) noexcept
{
    auto const& runs = categories();
    auto const above = std::upper_bound(
        runs.begin(), runs.end(), character, [](char32_t wanted, Category const& run) { return wanted < run.first; });
    return character < kBEYOND ? std::prev(above)->number : static_cast<uint32_t>(std::size(kCATEGORY_NAMES) - 1);
}

uint32_t categoriesNamed(std::string_view name) noexcept
{
    uint32_t found = 0;
    for (size_t at = 0; at < std::size(kCATEGORY_NAMES); ++at)
    {
        std::string_view const whole = kCATEGORY_NAMES[at];
        found |= whole == name || (name.size() == 1 && whole[0] == name[0]) ? uint32_t{1} << at : 0;
    }
    return found;
}

bool isSpace(char32_t character) noexcept
{
    return isIn(kSPACES, character);
}

bool isNumber(char32_t character) noexcept
{
    return isIn(kNUMBERS, character);
}

std::u32string normalized(std::u32string const& text, bool compose)
{
    constexpr char32_t kFIRST_MARK = 0x300, kFIRST_DECOMPOSED = 0xC0;
    if (std::all_of(text.begin(), text.end(),
            [&](char32_t each) { return each < (compose ? kFIRST_MARK : kFIRST_DECOMPOSED); }))
    {
        return text;
    }
    std::u32string found;
    for (char32_t const each : text)
    {
        decompose(each, found);
    }
    for (size_t at = 0; at < found.size();)
    {
        size_t end = at + 1;
        if (classOf(found[at]) != 0)
        {
            while (end < found.size() && classOf(found[end]) != 0)
            {
                ++end;
            }
            std::stable_sort(found.begin() + static_cast<std::ptrdiff_t>(at),
                found.begin() + static_cast<std::ptrdiff_t>(end),
                [](char32_t one, char32_t other) { return classOf(one) < classOf(other); });
        }
        at = end;
    }
    if (!compose)
    {
        return found;
    }
    std::u32string whole;
    size_t starter = std::u32string::npos;
    uint32_t last = 0; // class of what stands between the starter and this one
    for (char32_t const each : found)
    {
        uint32_t const own = classOf(each);
        bool const isNext = starter != std::u32string::npos && starter + 1 == whole.size();
        if (starter != std::u32string::npos && (isNext || (last < own && last != 0)))
        {
            char32_t const both = composed(whole[starter], each);
            if (both != 0)
            {
                whole[starter] = both;
                continue;
            }
        }
        if (own == 0)
        {
            starter = whole.size();
        }
        last = own;
        whole += each;
    }
    return whole;
}

} // namespace trtc::runtime
