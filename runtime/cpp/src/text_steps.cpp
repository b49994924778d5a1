#include "text_steps.h"

#include "text_steps_read.h"

namespace trtc::runtime
{

using namespace steps;

namespace
{

char const* const kGPT2 = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

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

} // namespace trtc::runtime
