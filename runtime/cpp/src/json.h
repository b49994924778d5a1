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

//! Read a document. Throws std::invalid_argument, which says what is wrong without a file's name.
Json parseJson(char const* data, size_t bytes, size_t limit = kLARGEST_MANIFEST);

//! Write a value as Python's json.dumps(sort_keys=True, separators=(",", ":"), ensure_ascii=False) does.
void writeCanonical(Json const& value, std::string& out);

//! Write a string as it stands in canonical JSON.
void writeCanonical(std::string const& text, std::string& out);

//! Write an object as it stands in canonical JSON: `members` are pairs of a name and what `write` writes, sorted by name.
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
