#include "record.h"

#include "error.h"
#include "sha256.h"

#include <cstring>

namespace trtc::runtime
{
namespace
{

//! A field of a record. `kind` is read by `kindEnd` and those below; the generator says what its letters mean.
struct Field
{
    char const* name;
    char const* kind;
    char const* fallback; //!< JSON of its default; null: it is required
    bool sparse;          //!< it is part of the digest only where it differs from its default
};

struct Type
{
    char const* name;
    Field const* fields;
    size_t count;
};

#include "manifest_fields.inc"

Type const& typeOf(char const* name, size_t length)
{
    for (Type const& type : kTYPES)
    {
        if (std::strlen(type.name) == length && std::memcmp(type.name, name, length) == 0)
        {
            return type;
        }
    }
    throw Error(TRTC_ERROR_INTERNAL, "The table of the manifest's fields lacks a record.");
}

//! Where a kind ends that begins here.
char const* kindEnd(char const* kind)
{
    switch (*kind)
    {
    case '?': return kindEnd(kind + 1);
    case '[':
    case '{': return kindEnd(kind + 1) + 1;
    case '@': return std::strchr(kind, ';') + 1;
    case '<':
    {
        char const* at = kind + 1;
        while (*at != '>')
        {
            at = kindEnd(at);
        }
        return at + 1;
    }
    default: return kind + 1;
    }
}

std::string described(char const* kind)
{
    switch (*kind)
    {
    case 's': return "a string";
    case 'i': return "an integer";
    case 'f': return "a number";
    case 'b': return "true or false";
    case '[': return "a list";
    case '?': return described(kind + 1) + " or null";
    case '<':
    {
        std::string found;
        for (char const* at = kind + 1; *at != '>'; at = kindEnd(at))
        {
            found += (found.empty() ? "" : " or ") + described(at);
        }
        return found;
    }
    default: return "an object";
    }
}

[[noreturn]] void refuse(std::string const& where, std::string const& expected, Json const& value)
{
    std::string said;
    writeCanonical(value, said);
    throw bundleError(shown(where, 300) + " is " + shown(said, 60) + "; it must be " + expected + ".");
}

void checkRecord(Json const& value, Type const& type, std::string const& where);

//! Whether a value has the outer form of a kind.
bool matches(char const* kind, Json const& value)
{
    switch (*kind)
    {
    case 's': return value.is(Json::Kind::kSTRING);
    case 'i': return value.is(Json::Kind::kINT);
    case 'f': return value.is(Json::Kind::kINT) || value.is(Json::Kind::kFLOAT);
    case 'b': return value.is(Json::Kind::kBOOL);
    case '[': return value.is(Json::Kind::kLIST);
    case '{':
    case '@': return value.is(Json::Kind::kOBJECT);
    default: return true;
    }
}

void checkKind(char const* kind, Json const& value, std::string const& where)
{
    if (*kind == '?')
    {
        if (!value.is(Json::Kind::kNULL))
        {
            if (!matches(kind + 1, value))
            {
                refuse(where, described(kind + 1), value);
            }
            checkKind(kind + 1, value, where);
        }
        return;
    }
    if (*kind == '<')
    {
        for (char const* at = kind + 1; *at != '>'; at = kindEnd(at))
        {
            if (matches(at, value))
            {
                checkKind(at, value, where);
                return;
            }
        }
        refuse(where, described(kind), value);
    }
    if (!matches(kind, value))
    {
        refuse(where, described(kind), value);
    }
    if (*kind == '[')
    {
        for (size_t at = 0; at < value.items.size(); ++at)
        {
            checkKind(kind + 1, value.items[at], where + "[" + std::to_string(at) + "]");
        }
    }
    else if (*kind == '{')
    {
        for (auto const& [name, member] : value.members)
        {
            checkKind(kind + 1, member, where + "['" + name + "']");
        }
    }
    else if (*kind == '@')
    {
        checkRecord(value, typeOf(kind + 1, static_cast<size_t>(std::strchr(kind, ';') - kind - 1)), where);
    }
}

void checkRecord(Json const& value, Type const& type, std::string const& where)
{
    for (size_t at = 0; at < type.count; ++at)
    {
        Field const& field = type.fields[at];
        Json const* const found = value.find(field.name);
        if (found != nullptr)
        {
            checkKind(field.kind, *found, where + "." + field.name);
        }
        else if (field.fallback == nullptr)
        {
            throw bundleError(shown(where, 300) + " has no field '" + field.name + "', which is required.");
        }
    }
}

void writeRecord(Json const& value, Type const& type, std::string& out, bool isRoot);

void writeKind(char const* kind, Json const& value, std::string& out)
{
    if (*kind == '?')
    {
        if (value.is(Json::Kind::kNULL))
        {
            out += "null";
            return;
        }
        ++kind;
    }
    if (*kind == '[' && value.is(Json::Kind::kLIST))
    {
        out += '[';
        for (size_t at = 0; at < value.items.size(); ++at)
        {
            out += at ? "," : "";
            writeKind(kind + 1, value.items[at], out);
        }
        out += ']';
    }
    else if (*kind == '{' && value.is(Json::Kind::kOBJECT))
    {
        writeObject(value.members, out, [&](Json const& member) { writeKind(kind + 1, member, out); });
    }
    else if (*kind == '@')
    {
        writeRecord(value, typeOf(kind + 1, static_cast<size_t>(std::strchr(kind, ';') - kind - 1)), out, false);
    }
    else
    {
        writeCanonical(value, out);
    }
}

void writeRecord(Json const& value, Type const& type, std::string& out, bool isRoot)
{
    std::map<std::string, std::string> written; // in the order of their names
    for (size_t at = 0; at < type.count; ++at)
    {
        Field const& field = type.fields[at];
        if (isRoot && (std::strcmp(field.name, "digest") == 0 || std::strcmp(field.name, "schema_version") == 0))
        {
            continue;
        }
        Json const* found = value.find(field.name);
        Json fallback;
        if (found == nullptr || field.sparse)
        {
            fallback = parseJson(field.fallback, std::strlen(field.fallback));
        }
        std::string text;
        writeKind(field.kind, found == nullptr ? fallback : *found, text);
        if (field.sparse)
        {
            std::string usual;
            writeKind(field.kind, fallback, usual);
            if (text == usual)
            {
                continue;
            }
        }
        written[field.name] = std::move(text);
    }
    writeObject(written, out, [&](std::string const& text) { out += text; });
}

template <size_t N>
bool isAmong(char const* const (&words)[N], std::string const& word)
{
    for (char const* each : words)
    {
        if (word == each)
        {
            return true;
        }
    }
    return false;
}

} // namespace

void checkManifestFields(Json const& manifest, std::string const& where)
{
    if (!manifest.is(Json::Kind::kOBJECT))
    {
        refuse(where, "an object", manifest);
    }
    checkRecord(manifest, typeOf("Manifest", 8), where);
}

std::string digestOf(Json const& manifest)
{
    std::string text;
    writeRecord(manifest, typeOf("Manifest", 8), text, true);
    return sha256(text.data(), text.size());
}

bool isWord(char const* table, std::string const& word)
{
    std::string const name = table;
    return name == "DTYPES"     ? isAmong(kDTYPES, word)
        : name == "ROLES"       ? isAmong(kROLES, word)
        : name == "STATE_KINDS" ? isAmong(kSTATE_KINDS, word)
        : name == "COMPARISONS" ? isAmong(kCOMPARISONS, word)
        : name == "FEEDS"       ? isAmong(kFEEDS, word)
        : name == "ROWS"        ? isAmong(kROWS, word)
                                : name == "MOMENTS" && isAmong(kMOMENTS, word);
}

} // namespace trtc::runtime
