// The regular expressions of tokenizers: alternatives, groups, classes with categories of Unicode, repetitions and
// lookahead, of which the leftmost match is found and of its alternatives the first, as Oniguruma does.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace trtc::runtime
{

class Regex
{
public:
    //! Compile a pattern, UTF-8. Throws Error (TRTC_ERROR_UNSUPPORTED), which names what is not read.
    explicit Regex(std::string const& pattern);

    //! The matches, [begin, end), from left to right. Throws Error if the pattern takes too many steps.
    std::vector<std::pair<size_t, size_t>> find(std::u32string_view text) const;

private:
    friend class RegexReader;

    //! Some characters, or a category of them, or all others.
    struct Item
    {
        char32_t first = 1, last = 0;
        uint32_t categories = 0;
        bool isSpace = false, isNegated = false;
    };

    //! A class of characters.
    struct Set
    {
        std::vector<Item> items;
        bool isNegated = false;
        uint64_t low[2] = {0, 0}; //!< of the first 128 characters, which are in it

        bool has(char32_t character) const noexcept;
        bool looksFor(char32_t character) const noexcept;
    };

    enum class Do : uint8_t
    {
        kSET,   //!< read a character of the set `set`
        kLOOP,  //!< read `first` to `second` of them, as many as there are; `isFinal`: never fewer
        kSPLIT, //!< go on at `first`, and if that fails at `second`
        kJUMP,  //!< go on at `first`
        kLOOK,  //!< go on at `first` if what follows is matched here; `isFinal`: if it is not
        kEND
    };

    struct Step
    {
        Do what = Do::kEND;
        size_t set = 0, first = 0, second = 0;
        bool isFinal = false;
    };

    std::string mPattern;
    std::vector<Set> mSets;
    std::vector<Step> mSteps;

    static void read(Regex& into, std::u32string pattern);
    bool match(std::u32string_view text, size_t step, size_t at, size_t& end, uint64_t& left) const;
};

} // namespace trtc::runtime
