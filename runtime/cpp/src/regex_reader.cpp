// Reads the pattern of a regular expression into the steps that match it.

#include "error.h"
#include "regex.h"
#include "unicode.h"

#include <algorithm>
#include <optional>

namespace trtc::runtime
{
namespace
{

constexpr size_t kDEEPEST = 32, kMOST_STEPS = 20000, kMOST_REPEATS = 1000;
constexpr size_t kENDLESS = SIZE_MAX;

//! The letter in its other case; letters beyond ASCII that fold to one of ASCII are `ſ` and the sign of Kelvin.
std::u32string otherCases(char32_t letter)
{
    switch (letter)
    {
    case U's':
    case U'S': return U"sS\u017F";
    case U'k':
    case U'K': return U"kK\u212A";
    default: break;
    }
    if ((letter >= U'a' && letter <= U'z') || (letter >= U'A' && letter <= U'Z'))
    {
        return {letter, letter ^ 0x20U};
    }
    return {letter};
}

} // namespace

//! Reads a pattern into steps.
class RegexReader
{
public:
    RegexReader(Regex& into, std::u32string pattern)
        : mInto(into)
        , mText(std::move(pattern))
    {
    }

    void read()
    {
        Node const whole = alternatives(0);
        if (mAt != mText.size())
        {
            refuse("a ')' that nothing opened");
        }
        if (whole.least == 0)
        {
            refuse("that it may match nothing");
        }
        write(whole);
        add(Regex::Do::kEND);
    }

private:
    using Set = Regex::Set;
    using Item = Regex::Item;
    using Do = Regex::Do;

    enum class Kind : uint8_t
    {
        kSET,
        kSEQUENCE,
        kCHOICE,
        kREPEAT,
        kLOOK
    };

    struct Node
    {
        Kind kind = Kind::kSEQUENCE;
        std::vector<Node> parts;
        size_t set = 0, fewest = 0, most = 0, least = 0; //!< `least`: characters of its shortest match
        bool isFinal = false;                            //!< possessive, or a lookahead that must fail
        char32_t letter = 0;                             //!< of a set where cases are the same: the only one, small
    };

    Regex& mInto;
    std::u32string mText;
    size_t mAt = 0;
    bool mAnyCase = false;

    [[noreturn]] void refuse(std::string const& what) const
    {
        throw unsupportedError("The tokenizer's pattern '" + shown(mInto.mPattern, 300) + "' has " + what
            + ", at its character " + std::to_string(mAt) + "; this library reads it not: run this model from Python.");
    }

    bool ends() const
    {
        return mAt >= mText.size();
    }

    bool takes(std::u32string_view what)
    {
        if (mText.compare(mAt, what.size(), what) != 0)
        {
            return false;
        }
        mAt += what.size();
        return true;
    }

    Node alternatives(size_t depth)
    {
        if (depth > kDEEPEST)
        {
            refuse("groups within more than " + std::to_string(kDEEPEST) + " others");
        }
        Node found;
        found.kind = Kind::kCHOICE;
        do
        {
            found.parts.push_back(sequence(depth));
        }
        while (takes(U"|"));
        found.least = kENDLESS;
        for (Node const& each : found.parts)
        {
            found.least = std::min(found.least, each.least);
        }
        return found.parts.size() == 1 ? Node(std::move(found.parts[0])) : found;
    }

    Node sequence(size_t depth)
    {
        Node found;
        while (!ends() && mText[mAt] != U'|' && mText[mAt] != U')')
        {
            found.parts.push_back(repeated(one(depth)));
            found.least += found.parts.back().least;
            if (found.parts.size() > 1)
            {
                std::u32string const two = {found.parts[found.parts.size() - 2].letter, found.parts.back().letter};
                for (char32_t const* const each : {U"ss", U"st", U"ff", U"fi", U"fl"})
                {
                    if (two == each)
                    {
                        refuse("'" + utf8Of(two) + "', which one letter folds to, where cases are the same");
                    }
                }
            }
        }
        return found;
    }

    Node one(size_t depth)
    {
        if (takes(U"("))
        {
            return group(depth);
        }
        if (takes(U"["))
        {
            return setNode(bracket());
        }
        Set set;
        set.items.push_back(item(false));
        char32_t const letter = set.items[0].first;
        Node found = setNode(std::move(set));
        found.letter = mAnyCase ? letter | 0x20U : 0;
        return found;
    }

    Node group(size_t depth)
    {
        bool const before = mAnyCase;
        std::optional<bool> mustFail;
        if (takes(U"?"))
        {
            if (takes(U"i:"))
            {
                mAnyCase = true;
            }
            else if (takes(U"!"))
            {
                mustFail = true;
            }
            else if (takes(U"="))
            {
                mustFail = false;
            }
            else if (!takes(U":"))
            {
                refuse("a group that begins with '(?" + utf8Of(mText.substr(mAt, 2)) + "'");
            }
        }
        Node inner = alternatives(depth + 1);
        if (!takes(U")"))
        {
            refuse("a '(' that nothing closes");
        }
        mAnyCase = before;
        if (!mustFail)
        {
            return inner;
        }
        Node found;
        found.kind = Kind::kLOOK;
        found.isFinal = *mustFail;
        found.parts.push_back(std::move(inner));
        return found;
    }

    Node repeated(Node inner)
    {
        while (!ends())
        {
            size_t fewest = 0, most = kENDLESS;
            size_t const start = mAt;
            if (takes(U"+"))
            {
                fewest = 1;
            }
            else if (takes(U"?"))
            {
                most = 1;
            }
            else if (takes(U"{"))
            {
                fewest = number();
                most = takes(U",") ? (!ends() && mText[mAt] == U'}' ? kENDLESS : number()) : fewest;
                if (!takes(U"}") || fewest > most)
                {
                    mAt = start;
                    refuse("a '{' that is no repetition");
                }
            }
            else if (!takes(U"*"))
            {
                break;
            }
            if (inner.kind == Kind::kLOOK || inner.kind == Kind::kREPEAT)
            {
                refuse("a repetition of a repetition or of a lookahead");
            }
            if (inner.least == 0)
            {
                refuse("a repetition of what may match nothing");
            }
            if (!ends() && mText[mAt] == U'?')
            {
                refuse("a lazy repetition");
            }
            Node found;
            found.kind = Kind::kREPEAT;
            found.fewest = fewest;
            found.most = most;
            found.least = fewest * inner.least;
            if (mText[start] != U'{' && takes(U"+"))
            {
                if (inner.kind != Kind::kSET)
                {
                    refuse("a possessive repetition of a group");
                }
                found.isFinal = true;
            }
            found.parts.push_back(std::move(inner));
            inner = std::move(found);
        }
        return inner;
    }

    size_t number()
    {
        size_t found = 0, digits = 0;
        for (; !ends() && mText[mAt] >= U'0' && mText[mAt] <= U'9'; ++mAt, ++digits)
        {
            found = std::min<size_t>(found * 10 + (mText[mAt] - U'0'), kMOST_REPEATS + 1);
        }
        if (digits == 0 || found > kMOST_REPEATS)
        {
            refuse("a '{' that is no repetition of at most " + std::to_string(kMOST_REPEATS));
        }
        return found;
    }

    Set bracket()
    {
        Set found;
        found.isNegated = takes(U"^");
        if (!ends() && mText[mAt] == U']')
        {
            refuse("an empty class");
        }
        while (!takes(U"]"))
        {
            if (ends())
            {
                refuse("a '[' that nothing closes");
            }
            if (mText[mAt] == U'[')
            {
                refuse("a class in a class");
            }
            if (takes(U"&&"))
            {
                refuse("an intersection of classes");
            }
            Item low = item(true);
            bool const isOne = low.first == low.last && !low.isNegated;
            if (isOne && mAt + 1 < mText.size() && mText[mAt] == U'-' && mText[mAt + 1] != U']')
            {
                ++mAt;
                Item const high = item(true);
                if (high.first != high.last || high.first < low.first || mAnyCase)
                {
                    refuse("a range that is none");
                }
                low.last = high.last;
            }
            found.items.push_back(low);
        }
        return found;
    }

    static Item character(char32_t which)
    {
        Item made;
        made.first = made.last = which;
        return made;
    }

    char32_t hexadecimal(size_t most)
    {
        char32_t found = 0;
        size_t digits = 0;
        for (; digits < most && !ends(); ++digits, ++mAt)
        {
            char32_t const each = mText[mAt];
            bool const isLetter = (each | 0x20U) >= U'a' && (each | 0x20U) <= U'f';
            if (!isLetter && (each < U'0' || each > U'9'))
            {
                break;
            }
            found = found * 16 + (isLetter ? (each | 0x20U) - U'a' + 10 : each - U'0');
        }
        if (digits == 0 || found > 0x10FFFF)
        {
            refuse("an escape that names no character");
        }
        return found;
    }

    //! A character, or what an escape stands for.
    Item item(bool isInClass)
    {
        char32_t const letter = mText[mAt];
        if (letter != U'\\')
        {
            if (!isInClass && std::u32string_view(U".^$*+?{").find(letter) != std::u32string_view::npos)
            {
                refuse("'" + utf8Of({&letter, 1}) + "' there");
            }
            ++mAt;
            return character(letter);
        }
        if (++mAt >= mText.size())
        {
            refuse("a '\\' at its end");
        }
        char32_t const what = mText[mAt++];
        Item made;
        switch (what)
        {
        case U'n': return character(U'\n');
        case U'r': return character(U'\r');
        case U't': return character(U'\t');
        case U'f': return character(U'\f');
        case U'v': return character(U'\v');
        case U'x':
            if (takes(U"{"))
            {
                char32_t const found = hexadecimal(8);
                if (!takes(U"}"))
                {
                    refuse("an escape that names no character");
                }
                return character(found);
            }
            return character(hexadecimal(2));
        case U'u': return character(hexadecimal(4));
        case U's':
        case U'S': made.isSpace = true; break;
        case U'd':
        case U'D': made.categories = categoriesNamed("Nd"); break;
        case U'p':
        case U'P':
        {
            size_t const close = mText.find(U'}', mAt);
            std::string const name =
                takes(U"{") && close != std::u32string::npos ? utf8Of(mText.substr(mAt, close - mAt)) : "";
            made.categories = categoriesNamed(name);
            if (made.categories == 0 || mAnyCase)
            {
                refuse("'\\p{" + shown(name, 40) + "}'" + (mAnyCase ? " where cases are the same" : ""));
            }
            mAt = close + 1;
            break;
        }
        default:
            if ((what | 0x20U) >= U'a' && (what | 0x20U) <= U'z')
            {
                refuse("'\\" + utf8Of({&what, 1}) + "'");
            }
            if (what >= U'0' && what <= U'9')
            {
                refuse("a reference to a group");
            }
            return character(what);
        }
        made.isNegated = what < U'a';
        return made;
    }

    Node setNode(Set set)
    {
        if (mAnyCase)
        {
            std::vector<Item> folded;
            for (Item const& each : set.items)
            {
                if (each.first == each.last)
                {
                    if (each.first > 0x7F)
                    {
                        refuse("a letter beyond ASCII where cases are the same");
                    }
                    for (char32_t const letter : otherCases(each.first))
                    {
                        folded.push_back(character(letter));
                    }
                }
                else
                {
                    folded.push_back(each);
                }
            }
            set.items = std::move(folded);
        }
        for (char32_t each = 0; each < 128; ++each)
        {
            set.low[each / 64] |= uint64_t{set.looksFor(each)} << each % 64;
        }
        Node found;
        found.kind = Kind::kSET;
        found.set = mInto.mSets.size();
        found.least = 1;
        mInto.mSets.push_back(std::move(set));
        return found;
    }

    size_t add(Do what, size_t set = 0, size_t first = 0, size_t second = 0, bool isFinal = false)
    {
        if (mInto.mSteps.size() >= kMOST_STEPS)
        {
            refuse("more than " + std::to_string(kMOST_STEPS) + " steps");
        }
        Regex::Step step;
        step.what = what;
        step.set = set;
        step.first = first;
        step.second = second;
        step.isFinal = isFinal;
        mInto.mSteps.push_back(step);
        return mInto.mSteps.size() - 1;
    }

    void write(Node const& node)
    {
        auto& steps = mInto.mSteps;
        switch (node.kind)
        {
        case Kind::kSET: add(Do::kSET, node.set); return;
        case Kind::kSEQUENCE:
            for (Node const& each : node.parts)
            {
                write(each);
            }
            return;
        case Kind::kCHOICE:
        {
            std::vector<size_t> jumps;
            for (size_t at = 0; at < node.parts.size(); ++at)
            {
                bool const isLast = at + 1 == node.parts.size();
                size_t const split = isLast ? 0 : add(Do::kSPLIT);
                if (!isLast)
                {
                    steps[split].first = steps.size();
                }
                write(node.parts[at]);
                if (!isLast)
                {
                    jumps.push_back(add(Do::kJUMP));
                    steps[split].second = steps.size();
                }
            }
            for (size_t const jump : jumps)
            {
                steps[jump].first = steps.size();
            }
            return;
        }
        case Kind::kLOOK:
        {
            size_t const look = add(Do::kLOOK, 0, 0, 0, node.isFinal);
            write(node.parts[0]);
            add(Do::kEND);
            steps[look].first = steps.size();
            return;
        }
        case Kind::kREPEAT: break;
        }
        Node const& inner = node.parts[0];
        if (inner.kind == Kind::kSET)
        {
            add(Do::kLOOP, inner.set, node.fewest, node.most, node.isFinal);
            return;
        }
        for (size_t at = 0; at < node.fewest; ++at)
        {
            write(inner);
        }
        if (node.most == kENDLESS)
        {
            size_t const split = add(Do::kSPLIT);
            steps[split].first = steps.size();
            write(inner);
            add(Do::kJUMP, 0, split);
            steps[split].second = steps.size();
            return;
        }
        std::vector<size_t> splits;
        for (size_t at = node.fewest; at < node.most; ++at)
        {
            splits.push_back(add(Do::kSPLIT));
            steps[splits.back()].first = steps.size();
            write(inner);
        }
        for (size_t const split : splits)
        {
            steps[split].second = steps.size();
        }
    }
};

void Regex::read(Regex& into, std::u32string pattern)
{
    RegexReader(into, std::move(pattern)).read();
}

} // namespace trtc::runtime
