// What is done with a text before its words become tokens, and with tokens before they are a text again: the steps of a
// `tokenizer.json`.
#pragma once

#include "json.h"
#include "regex.h"

#include <optional>
#include <string>
#include <vector>

namespace trtc::runtime
{

//! Changes a text as a whole.
class Normalizer
{
public:
    Normalizer() = default;

    //! Throws Error (TRTC_ERROR_UNSUPPORTED): it has a step that is not read; std::invalid_argument: it is damaged.
    explicit Normalizer(Json const& from);

    std::u32string operator()(std::u32string text) const;

private:
    struct Step
    {
        enum class Do : uint8_t
        {
            kPREPEND,
            kREPLACE,
            kCOMPOSE,
            kDECOMPOSE
        } what;
        std::u32string with;
        std::u32string literal;
        std::optional<Regex> pattern;
    };

    std::vector<Step> mSteps;

    void add(Json const& from);
};

//! A part of a text: words to be, or a token already.
struct Part
{
    std::u32string text;
    int64_t token = -1;
    bool isFirst = false; //!< the text begins with it
};

//! Cuts parts into words.
class Cutter
{
public:
    Cutter() = default;

    //! As for a normalizer.
    explicit Cutter(Json const& from);

    std::vector<Part> operator()(std::vector<Part> parts) const;

private:
    enum class Keep : uint8_t
    {
        kISOLATED,
        kREMOVED,
        kWITH_PREVIOUS,
        kWITH_NEXT,
        kCONTIGUOUS
    };

    struct Step
    {
        enum class Do : uint8_t
        {
            kSPLIT,
            kDIGITS,
            kSPACES,
            kBYTES
        } what;
        std::u32string literal;
        std::optional<Regex> pattern;
        Keep keep = Keep::kISOLATED;
        bool isInverted = false;
        bool splits = true;
        char32_t space = 0;           //!< what stands for a space
        bool prepends = false;        //!< in front of each part
        bool prependsToFirst = false; //!< in front of the first
    };

    std::vector<Step> mSteps;

    void add(Json const& from);
    static std::vector<std::pair<size_t, size_t>> matches(Step const& step, std::u32string const& text);
    static void split(Step const& step, Part const& part, std::vector<Part>& into);
};

//! Makes a text of tokens.
class Decoder
{
public:
    //! As for a normalizer; null: tokens are divided by spaces.
    explicit Decoder(Json const* from);

    std::string operator()(std::vector<std::string> tokens) const;

    //! Whether it makes characters of runs of tokens that are bytes.
    bool fallsBackToBytes() const noexcept;

private:
    struct Step
    {
        enum class Do : uint8_t
        {
            kBYTE_LEVEL,
            kREPLACE,
            kBYTE_FALLBACK,
            kFUSE,
            kSTRIP,
            kSPACES
        } what;
        std::string literal, with;
        std::optional<Regex> pattern;
        char32_t letter = 0;
        size_t count = 0;
        bool dropsFirst = false;
    };

    std::vector<Step> mSteps;
    bool mIsThere = false;

    void add(Json const& from);
};

} // namespace trtc::runtime
