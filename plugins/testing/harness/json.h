// Writes JSON, one value after another; commas take care of themselves.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <string>

namespace trtc::harness
{

class Json
{
public:
    Json& begin(char open)
    {
        separate();
        mText += open;
        mFirst = true;
        return *this;
    }

    Json& end(char close)
    {
        mText += close;
        mFirst = false;
        return *this;
    }

    Json& key(std::string const& name)
    {
        text(name);
        mText += ": ";
        mFirst = true;
        return *this;
    }

    Json& text(std::string const& value)
    {
        separate();
        mText += '"';
        for (char c : value)
        {
            auto const byte = static_cast<unsigned char>(c);
            if (c == '"' || c == '\\')
            {
                mText += '\\';
            }
            if (byte < 0x20U)
            {
                char escaped[8];
                std::snprintf(escaped, sizeof(escaped), "\\u%04x", byte);
                mText += escaped;
                continue;
            }
            mText += c;
        }
        mText += '"';
        return *this;
    }

    Json& number(int64_t value)
    {
        separate();
        mText += std::to_string(value);
        return *this;
    }

    Json& real(double value)
    {
        separate();
        char written[40];
        std::snprintf(written, sizeof(written), "%.9g", value);
        // Python reads these two by its own names.
        mText += std::isnan(value) ? "NaN" : std::isinf(value) ? (value < 0.0 ? "-Infinity" : "Infinity") : written;
        return *this;
    }

    Json& truth(bool value)
    {
        separate();
        mText += value ? "true" : "false";
        return *this;
    }

    Json& null()
    {
        separate();
        mText += "null";
        return *this;
    }

    template <typename List>
    Json& numbers(List const& values)
    {
        begin('[');
        for (auto const& value : values)
        {
            number(static_cast<int64_t>(value));
        }
        return end(']');
    }

    template <typename List>
    Json& texts(List const& values)
    {
        begin('[');
        for (auto const& value : values)
        {
            text(value);
        }
        return end(']');
    }

    std::string const& str() const
    {
        return mText;
    }

private:
    void separate()
    {
        if (!mFirst)
        {
            mText += ", ";
        }
        mFirst = false;
    }

    std::string mText;
    bool mFirst{true};
};

} // namespace trtc::harness
