#include "onnx_file.h"

#include <cstring>
#include <stdexcept>

namespace trtc::runtime
{
namespace
{

constexpr int kDEEPEST = 100; // as protobuf itself reads

enum class Kind
{
    kNONE,
    kMODEL,
    kTRAINING,
    kGRAPH,
    kNODE,
    kATTRIBUTE,
    kFUNCTION,
    kTENSOR,
    kSPARSE
};

//! What message a field of a message holds, by the numbers of onnx.proto.
Kind partOf(Kind kind, uint64_t number)
{
    switch (kind)
    {
    case Kind::kMODEL:
        return number == 7 ? Kind::kGRAPH
            : number == 20 ? Kind::kTRAINING
            : number == 25 ? Kind::kFUNCTION
                           : Kind::kNONE;
    case Kind::kTRAINING: return number == 1 || number == 2 ? Kind::kGRAPH : Kind::kNONE;
    case Kind::kGRAPH:
        return number == 1 ? Kind::kNODE : number == 5 ? Kind::kTENSOR : number == 15 ? Kind::kSPARSE : Kind::kNONE;
    case Kind::kSPARSE: return number == 1 || number == 2 ? Kind::kTENSOR : Kind::kNONE;
    case Kind::kNODE: return number == 5 ? Kind::kATTRIBUTE : Kind::kNONE;
    case Kind::kATTRIBUTE:
        return number == 5 || number == 10 ? Kind::kTENSOR
            : number == 6 || number == 11  ? Kind::kGRAPH
            : number == 22 || number == 23 ? Kind::kSPARSE
                                           : Kind::kNONE;
    case Kind::kFUNCTION: return number == 7 ? Kind::kNODE : number == 11 ? Kind::kATTRIBUTE : Kind::kNONE;
    default: return Kind::kNONE;
    }
}

//! Goes through the fields of one message.
class Reader
{
public:
    Reader(char const* data, size_t bytes)
        : mAt(data)
        , mEnd(data + bytes)
    {
    }

    uint64_t number = 0;
    uint64_t value = 0;         //!< of a number
    char const* part = nullptr; //!< of bytes, else null
    size_t size = 0;

    bool next()
    {
        if (mAt == mEnd)
        {
            return false;
        }
        uint64_t const key = varint();
        number = key >> 3;
        part = nullptr;
        if (number == 0 || key >> 32 != 0)
        {
            throw std::invalid_argument("a field has no proper number");
        }
        switch (key & 7)
        {
        case 0: value = varint(); return true;
        case 1: size = 8; break;
        case 2: size = static_cast<size_t>(varint()); break;
        case 5: size = 4; break;
        default: throw std::invalid_argument("a field is of an unknown kind");
        }
        if (size > static_cast<size_t>(mEnd - mAt))
        {
            throw std::invalid_argument("it ends inside a field");
        }
        part = (key & 7) == 2 ? mAt : nullptr;
        mAt += size;
        return true;
    }

    std::string text() const
    {
        return part == nullptr ? std::string() : std::string(part, size);
    }

private:
    char const* mAt;
    char const* mEnd;

    uint64_t varint()
    {
        uint64_t found = 0;
        for (int shift = 0; shift < 64; shift += 7)
        {
            if (mAt == mEnd)
            {
                break;
            }
            auto const byte = static_cast<unsigned char>(*mAt++);
            found |= static_cast<uint64_t>(byte & 0x7F) << shift;
            if (byte < 0x80)
            {
                return found;
            }
        }
        throw std::invalid_argument("it ends inside a number");
    }
};

uint64_t numberOf(std::string const& text)
{
    if (text.empty() || text.size() > 18 || text.find_first_not_of("0123456789") != std::string::npos)
    {
        throw std::invalid_argument("a tensor's place in another file is no number");
    }
    return std::stoull(text);
}

void readTensor(char const* data, size_t bytes, bool isWeight, std::vector<Stored>& found)
{
    Stored made;
    made.isWeight = isWeight;
    bool isOutside = false;
    bool hasLocation = false, hasOffset = false;
    Reader reader(data, bytes);
    while (reader.next())
    {
        if (reader.number == 8)
        {
            made.name = reader.text();
        }
        else if (reader.number == 14)
        {
            isOutside = (reader.value & 0xFFFFFFFF) == 1 && reader.part == nullptr;
        }
        else if (reader.number == 13)
        {
            std::string key, value;
            Reader entry(reader.part, reader.part == nullptr ? 0 : reader.size);
            while (entry.next())
            {
                if (entry.number == 1)
                {
                    key = entry.text();
                }
                else if (entry.number == 2)
                {
                    value = entry.text();
                }
            }
            bool& isThere = key == "location" ? hasLocation : key == "offset" ? hasOffset : made.hasLength;
            if (key != "location" && key != "offset" && key != "length")
            {
                continue;
            }
            if (isThere)
            {
                throw std::invalid_argument("a tensor says twice what its " + key + " is");
            }
            isThere = true;
            if (key == "location")
            {
                made.location = value;
            }
            else
            {
                (key == "offset" ? made.offset : made.length) = numberOf(value);
            }
        }
    }
    if (isOutside)
    {
        found.push_back(std::move(made));
    }
}

void readMessage(Kind kind, char const* data, size_t bytes, int depth, bool isMain, std::vector<Stored>& found)
{
    if (depth > kDEEPEST)
    {
        throw std::invalid_argument("it is nested too deeply");
    }
    Reader reader(data, bytes);
    while (reader.next())
    {
        Kind const inner = partOf(kind, reader.number);
        if (inner == Kind::kNONE)
        {
            continue;
        }
        if (reader.part == nullptr)
        {
            throw std::invalid_argument("a message is no message");
        }
        if (inner == Kind::kTENSOR)
        {
            readTensor(reader.part, reader.size, isMain && kind == Kind::kGRAPH, found);
        }
        else
        {
            bool const staysMain = isMain && kind == Kind::kMODEL && inner == Kind::kGRAPH;
            readMessage(inner, reader.part, reader.size, depth + 1, staysMain, found);
        }
    }
}

void readNodes(char const* graph, size_t bytes, int depth, bool isInner, std::vector<OnnxNode>& found);

void readNode(char const* data, size_t bytes, int depth, bool isInner, std::vector<OnnxNode>& found)
{
    OnnxNode made;
    made.isInner = isInner;
    std::vector<std::pair<char const*, size_t>> graphs;
    Reader reader(data, bytes);
    while (reader.next())
    {
        switch (reader.part == nullptr ? 0 : reader.number)
        {
        case 1: made.inputs.push_back(reader.text()); break;
        case 2: made.outputs.push_back(reader.text()); break;
        case 3: made.name = reader.text(); break;
        case 4: made.opType = reader.text(); break;
        case 5:
        {
            Reader attribute(reader.part, reader.size);
            while (attribute.next())
            {
                if ((attribute.number == 6 || attribute.number == 11) && attribute.part != nullptr)
                {
                    graphs.emplace_back(attribute.part, attribute.size);
                }
            }
            break;
        }
        case 7: made.domain = reader.text(); break;
        default: break;
        }
    }
    found.push_back(std::move(made));
    for (auto const& [graph, size] : graphs)
    {
        readNodes(graph, size, depth + 1, true, found);
    }
}

void readNodes(char const* graph, size_t bytes, int depth, bool isInner, std::vector<OnnxNode>& found)
{
    if (depth > kDEEPEST)
    {
        throw std::invalid_argument("it is nested too deeply");
    }
    Reader reader(graph, bytes);
    while (reader.next())
    {
        if (reader.number == 1 && reader.part != nullptr)
        {
            readNode(reader.part, reader.size, depth, isInner, found);
        }
    }
}

} // namespace

std::vector<OnnxNode> nodesOf(char const* data, size_t bytes)
{
    std::vector<OnnxNode> found;
    Reader reader(data, bytes);
    while (reader.next())
    {
        if (reader.number == 7 && reader.part != nullptr)
        {
            readNodes(reader.part, reader.size, 0, false, found);
        }
    }
    return found;
}

std::vector<Stored> storedOutside(char const* data, size_t bytes)
{
    std::vector<Stored> found;
    readMessage(Kind::kMODEL, data, bytes, 0, true, found);
    return found;
}

} // namespace trtc::runtime
