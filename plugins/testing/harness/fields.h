// Fields of plugins: owned, compared, written as JSON, and made from what a case asks for.
#pragma once

#include "json.h"
#include "request.h"

#include <cstring>

namespace trtc::harness
{

using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

struct FieldType
{
    PluginFieldType type;
    char const* name;
    size_t bytes;
};

inline FieldType const& fieldType(PluginFieldType type)
{
    static std::vector<FieldType> const sTypes{{PluginFieldType::kFLOAT16, "float16", 2},
        {PluginFieldType::kFLOAT32, "float32", 4}, {PluginFieldType::kFLOAT64, "float64", 8},
        {PluginFieldType::kINT8, "int8", 1}, {PluginFieldType::kINT16, "int16", 2},
        {PluginFieldType::kINT32, "int32", 4}, {PluginFieldType::kCHAR, "char", 1},
        {PluginFieldType::kINT64, "int64", 8}};
    static FieldType const sOther{PluginFieldType::kUNKNOWN, "unknown", 1};
    for (auto const& known : sTypes)
    {
        if (known.type == type)
        {
            return known;
        }
    }
    return sOther;
}

// Owns the bytes of a collection, so that it outlives whoever handed it out.
class Fields
{
public:
    Fields() = default;

    explicit Fields(PluginFieldCollection const* from)
    {
        for (int32_t i = 0; from != nullptr && i < from->nbFields; ++i)
        {
            PluginField const& field = from->fields[i];
            size_t const bytes = fieldType(field.type).bytes * static_cast<size_t>(std::max(field.length, 0));
            auto const* data = static_cast<unsigned char const*>(field.data);
            add(field.name == nullptr ? "" : field.name, field.type,
                data == nullptr ? std::vector<unsigned char>{} : std::vector<unsigned char>(data, data + bytes),
                field.length);
        }
    }

    void add(std::string const& name, PluginFieldType type, std::vector<unsigned char> const& data, int32_t length)
    {
        mFields.push_back({name, type, data, length});
    }

    template <typename T>
    void add(std::string const& name, PluginFieldType type, std::vector<T> const& values)
    {
        auto const* bytes = reinterpret_cast<unsigned char const*>(values.data());
        add(name, type, std::vector<unsigned char>(bytes, bytes + values.size() * sizeof(T)),
            static_cast<int32_t>(values.size()));
    }

    PluginFieldCollection const* collection()
    {
        mViews.clear();
        for (auto const& field : mFields)
        {
            void const* const data = field.data.empty() ? nullptr : field.data.data();
            mViews.emplace_back(field.name.c_str(), data, field.type, field.length);
        }
        mCollection = {static_cast<int32_t>(mViews.size()), mViews.data()};
        return &mCollection;
    }

    bool operator==(Fields const& other) const
    {
        return mFields == other.mFields;
    }

    void write(Json& json) const
    {
        json.begin('[');
        for (auto const& field : mFields)
        {
            json.begin('{').key("name").text(field.name).key("type").text(fieldType(field.type).name);
            json.key("length").number(field.length).key("values").begin('[');
            for (int32_t i = 0; i < field.length && !field.data.empty(); ++i)
            {
                writeValue(json, field, static_cast<size_t>(i));
            }
            json.end(']').end('}');
        }
        json.end(']');
    }

private:
    struct Owned
    {
        std::string name;
        PluginFieldType type;
        std::vector<unsigned char> data;
        int32_t length;

        bool operator==(Owned const& other) const
        {
            return name == other.name && type == other.type && data == other.data && length == other.length;
        }
    };

    template <typename T>
    static T at(Owned const& field, size_t index)
    {
        T value;
        std::memcpy(&value, field.data.data() + index * sizeof(T), sizeof(T));
        return value;
    }

    static void writeValue(Json& json, Owned const& field, size_t index)
    {
        switch (field.type)
        {
        case PluginFieldType::kFLOAT32: json.real(at<float>(field, index)); break;
        case PluginFieldType::kFLOAT64: json.real(at<double>(field, index)); break;
        case PluginFieldType::kINT32: json.number(at<int32_t>(field, index)); break;
        case PluginFieldType::kINT64: json.number(at<int64_t>(field, index)); break;
        case PluginFieldType::kINT16: json.number(at<int16_t>(field, index)); break;
        default: json.number(at<int8_t>(field, index)); break;
        }
    }

    std::vector<Owned> mFields;
    std::vector<PluginField> mViews;
    PluginFieldCollection mCollection{};
};

template <typename T>
std::vector<T> numbersOf(std::vector<std::string> const& words)
{
    std::vector<T> numbers;
    for (auto const& word : words)
    {
        numbers.push_back(
            std::is_floating_point_v<T> ? static_cast<T>(std::stod(word)) : static_cast<T>(std::stoll(word)));
    }
    return numbers;
}

inline Fields fieldsOf(Case const& wanted, PluginFieldCollection const* declared)
{
    Fields fields;
    for (auto const& field : wanted.fields)
    {
        std::string kind = field.kind;
        for (int32_t i = 0; kind == "declared" && declared != nullptr && i < declared->nbFields; ++i)
        {
            if (field.name == declared->fields[i].name)
            {
                kind = fieldType(declared->fields[i].type).name;
            }
        }
        if (kind == "int32" || kind == "declared") // an attribute that the creator does not list
        {
            fields.add(field.name, PluginFieldType::kINT32, numbersOf<int32_t>(field.values));
        }
        else if (kind == "int64")
        {
            fields.add(field.name, PluginFieldType::kINT64, numbersOf<int64_t>(field.values));
        }
        else if (kind == "float32")
        {
            fields.add(field.name, PluginFieldType::kFLOAT32, numbersOf<float>(field.values));
        }
        else if (kind == "float64")
        {
            fields.add(field.name, PluginFieldType::kFLOAT64, numbersOf<double>(field.values));
        }
        else if (kind == "char")
        {
            std::string const text = field.values.empty() ? "" : field.values[0];
            fields.add(field.name, PluginFieldType::kCHAR, std::vector<char>(text.begin(), text.end()));
        }
        else if (kind == "empty")
        {
            fields.add(field.name, PluginFieldType::kINT64, std::vector<int64_t>{});
        }
        else
        {
            throw std::runtime_error("no kind of field is called " + kind);
        }
    }
    return fields;
}

} // namespace trtc::harness
