#include "json.h"

#include <charconv>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <stdexcept>

namespace trtc::runtime
{
namespace
{

constexpr size_t kDEEPEST = 64;
constexpr size_t kMOST_DIGITS = 25;

//! Builds the tree while nlohmann's parser, which does not recurse, goes through the text; a bound stops it at once.
class Builder final : public nlohmann::json::json_sax_t
{
public:
    Json root;
    std::string problem;

    Builder(JsonLimits const& limits, JsonSink* sink)
        : mLimits(limits)
        , mSink(sink)
    {
    }

    bool null() override
    {
        return put(Json{});
    }

    bool boolean(bool value) override
    {
        Json made;
        made.kind = Json::Kind::kBOOL;
        made.truth = value;
        return put(std::move(made));
    }

    bool number_integer(number_integer_t value) override
    {
        return put(ofInteger(value, static_cast<double>(value), std::to_string(value)));
    }

    bool number_unsigned(number_unsigned_t value) override
    {
        constexpr auto kMOST = static_cast<uint64_t>(std::numeric_limits<int64_t>::max());
        return put(ofInteger(
            static_cast<int64_t>(value < kMOST ? value : kMOST), static_cast<double>(value), std::to_string(value)));
    }

    bool number_float(number_float_t value, string_t const& raw) override
    {
        if (raw.find_first_of(".eE") == std::string::npos || !std::isfinite(value))
        {
            bool const isLong = raw.size() > kMOST_DIGITS;
            auto const of = isLong ? "…, of " + std::to_string(raw.size()) + " characters," : std::string();
            return fail("the number " + raw.substr(0, isLong ? 12 : raw.size()) + of + " is too large");
        }
        Json made;
        made.kind = Json::Kind::kFLOAT;
        made.number = value;
        return put(std::move(made));
    }

    bool string(string_t& value) override
    {
        if (!fits(value))
        {
            return false;
        }
        Json made;
        made.kind = Json::Kind::kSTRING;
        made.text = std::move(value);
        return put(std::move(made));
    }

    bool binary(binary_t&) override
    {
        return fail("it holds bytes"); // not in JSON
    }

    bool start_object(size_t) override
    {
        return open(Json::Kind::kOBJECT);
    }

    bool key(string_t& value) override
    {
        if (mTaken > 0)
        {
            mSink->name(value);
            return fits(value);
        }
        mKeys.back() = std::move(value);
        return fits(mKeys.back());
    }

    bool end_object() override
    {
        return close();
    }

    bool start_array(size_t) override
    {
        return open(Json::Kind::kLIST);
    }

    bool end_array() override
    {
        return close();
    }

    bool parse_error(size_t position, std::string const&, nlohmann::detail::exception const&) override
    {
        return fail("it is no JSON at byte " + std::to_string(position));
    }

private:
    std::vector<Json*> mOpen; // their place in the tree stays: an open value is the last of its parent
    std::vector<std::string> mKeys;
    size_t mValues = 0;
    JsonLimits const& mLimits;
    JsonSink* const mSink;
    size_t mTaken = 0; // open objects and lists that are the sink's

    bool fail(std::string const& what)
    {
        problem = what;
        return false;
    }

    bool fits(std::string const& text)
    {
        size_t count = 0;
        for (char const each : text)
        {
            count += (static_cast<unsigned char>(each) & 0xC0) != 0x80;
        }
        return count <= mLimits.text
            || fail("a text of " + std::to_string(count) + " characters stands there, and it may have "
                + std::to_string(mLimits.text));
    }

    static Json ofInteger(int64_t value, double number, std::string text)
    {
        Json made;
        made.kind = Json::Kind::kINT;
        made.integer = value;
        made.number = number;
        made.text = std::move(text);
        return made;
    }

    Json* place(Json&& value)
    {
        if (mOpen.empty())
        {
            root = std::move(value);
            return &root;
        }
        Json& parent = *mOpen.back();
        if (parent.kind == Json::Kind::kLIST)
        {
            parent.items.push_back(std::move(value));
            return &parent.items.back();
        }
        Json& at = parent.members[mKeys.back()];
        at = std::move(value);
        return &at;
    }

    bool isOneMore()
    {
        return ++mValues <= mLimits.values || fail("it has more than " + std::to_string(mLimits.values) + " values");
    }

    bool put(Json&& value)
    {
        if (mTaken == 0)
        {
            if (!isOneMore())
            {
                return false;
            }
            place(std::move(value));
        }
        else if (value.is(Json::Kind::kSTRING))
        {
            mSink->text(value.text);
        }
        else if (value.is(Json::Kind::kINT))
        {
            mSink->integer(value.integer);
        }
        else
        {
            mSink->other();
        }
        return true;
    }

    bool open(Json::Kind kind)
    {
        if (mOpen.size() + mTaken >= kDEEPEST)
        {
            return fail("it is nested deeper than " + std::to_string(kDEEPEST) + " levels");
        }
        if (mTaken > 0 || (mSink != nullptr && mSink->takes(mKeys)))
        {
            ++mTaken;
            mSink->begins();
            return true;
        }
        if (!isOneMore())
        {
            return false;
        }
        Json made;
        made.kind = kind;
        Json* const at = place(std::move(made));
        mOpen.push_back(at);
        mKeys.emplace_back();
        return true;
    }

    bool close()
    {
        if (mTaken > 0)
        {
            --mTaken;
            mSink->ends();
            return true;
        }
        mOpen.pop_back();
        mKeys.pop_back();
        return true;
    }
};

//! As Python writes a float: the shortest digits that read back the same, with an exponent below 1e-4 and from 1e16 on.
void writeFloat(double value, std::string& out)
{
    char digits[64];
    auto const made = std::to_chars(digits, digits + sizeof digits, value, std::chars_format::scientific);
    std::string const whole(digits, made.ptr);
    auto const split = whole.find('e');
    int const exponent = std::stoi(whole.substr(split + 1));
    std::string mantissa = whole.substr(0, split);
    if (mantissa[0] == '-')
    {
        out += '-';
        mantissa.erase(0, 1);
    }
    if (exponent < -4 || exponent >= 16)
    {
        out += mantissa;
        out += exponent < 0 ? "e-" : "e+";
        auto const size = std::to_string(std::abs(exponent));
        out += size.size() < 2 ? "0" + size : size;
        return;
    }
    if (mantissa.size() > 1)
    {
        mantissa.erase(1, 1); // the point
    }
    if (exponent < 0)
    {
        out += "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + mantissa;
        return;
    }
    auto const front = static_cast<size_t>(exponent) + 1;
    if (mantissa.size() <= front)
    {
        out += mantissa + std::string(front - mantissa.size(), '0') + ".0";
        return;
    }
    out += mantissa.substr(0, front) + "." + mantissa.substr(front);
}

} // namespace

Json parseJson(char const* data, size_t bytes, JsonLimits const& limits, JsonSink* sink)
{
    if (bytes > limits.bytes)
    {
        throw std::invalid_argument(
            "it has " + std::to_string(bytes) + " bytes, and may have " + std::to_string(limits.bytes));
    }
    Builder builder(limits, sink);
    if (!nlohmann::json::sax_parse(data, data + bytes, &builder))
    {
        throw std::invalid_argument(builder.problem.empty() ? "it is no JSON" : builder.problem);
    }
    return std::move(builder.root);
}

void writeCanonical(std::string const& text, std::string& out)
{
    out += '"';
    for (char const each : text)
    {
        auto const code = static_cast<unsigned char>(each);
        switch (each)
        {
        case '"': out += "\\\""; break;
        case '\\': out += "\\\\"; break;
        case '\n': out += "\\n"; break;
        case '\r': out += "\\r"; break;
        case '\t': out += "\\t"; break;
        case '\f': out += "\\f"; break;
        case '\b': out += "\\b"; break;
        default:
            if (code < 0x20)
            {
                char const* const kHEX = "0123456789abcdef";
                out += "\\u00";
                out += kHEX[code >> 4];
                out += kHEX[code & 15];
            }
            else
            {
                out += each;
            }
        }
    }
    out += '"';
}

void writeCanonical(Json const& value, std::string& out)
{
    switch (value.kind)
    {
    case Json::Kind::kNULL: out += "null"; break;
    case Json::Kind::kBOOL: out += value.truth ? "true" : "false"; break;
    case Json::Kind::kINT: out += value.text; break;
    case Json::Kind::kFLOAT: writeFloat(value.number, out); break;
    case Json::Kind::kSTRING: writeCanonical(value.text, out); break;
    case Json::Kind::kLIST:
        out += '[';
        for (size_t at = 0; at < value.items.size(); ++at)
        {
            out += at ? "," : "";
            writeCanonical(value.items[at], out);
        }
        out += ']';
        break;
    case Json::Kind::kOBJECT:
        writeObject(value.members, out, [&](Json const& member) { writeCanonical(member, out); });
        break;
    }
}

} // namespace trtc::runtime
