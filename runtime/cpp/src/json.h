// Strict JSON within bounds: no NaN, nothing infinite, at most 64 levels, integers of 64 bits, UTF-8 alone.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace trtc::runtime
{

constexpr size_t kLARGEST_MANIFEST = size_t{16} << 20;

//! One value. Of a name that an object has several times the last one counts.
struct Json
{
    enum class Kind : uint8_t
    {
        kNULL,
        kBOOL,
        kINT,
        kFLOAT,
        kSTRING,
        kLIST,
        kOBJECT
    };

    Kind kind = Kind::kNULL;
    bool truth = false;
    int64_t integer = 0; //!< of an integer beyond int64: the largest
    double number = 0.0; //!< of an integer too
    std::string text;    //!< of a string; of an integer its decimal digits
    std::vector<Json> items;
    std::map<std::string, Json> members;

    bool is(Kind other) const noexcept
    {
        return kind == other;
    }

    //! A member of an object, or null: it is none, or has none of this name.
    Json const* find(std::string const& name) const
    {
        auto const found = members.find(name);
        return found == members.end() ? nullptr : &found->second;
    }
};

//! Takes what large members hold, so that no tree is built of it.
class JsonSink
{
public:
    virtual ~JsonSink() = default;

    //! Whether it takes the object or list at this place, by the names on the way.
    virtual bool takes(std::vector<std::string> const& names) = 0;

    //! What stands there: an object or a list begins or ends, the name of a member, and values.
    virtual void begins() = 0;
    virtual void ends() = 0;
    virtual void name(std::string const& text) = 0;
    virtual void text(std::string const& value) = 0;
    virtual void integer(int64_t value) = 0;
    virtual void other() = 0;
};

//! Bounds of a document; what a sink takes does not count as values.
struct JsonLimits
{
    size_t bytes = kLARGEST_MANIFEST;
    size_t values = size_t{1} << 19; //!< one takes some hundred bytes here, and two in the file
    size_t text = size_t{1} << 16;   //!< characters
};

//! Read a document. Throws std::invalid_argument, which says what is wrong without a file's name, and what a sink
//! throws.
Json parseJson(char const* data, size_t bytes, JsonLimits const& limits = {}, JsonSink* sink = nullptr);

//! Write a value as Python's json.dumps(sort_keys=True, separators=(",", ":"), ensure_ascii=False) does.
void writeCanonical(Json const& value, std::string& out);

//! Write a string as it stands in canonical JSON.
void writeCanonical(std::string const& text, std::string& out);

//! Write an object as it stands in canonical JSON: `members` are pairs of a name and what `write` writes, sorted by
//! name.
template <typename Members, typename Write>
void writeObject(Members const& members, std::string& out, Write const& write)
{
    out += '{';
    char const* between = "";
    for (auto const& [name, member] : members)
    {
        out += between;
        between = ",";
        writeCanonical(name, out);
        out += ':';
        write(member);
    }
    out += '}';
}

} // namespace trtc::runtime
