// What the harness is asked to do: a text file, one directive on a line, words between spaces.
//
//   case LABEL                      begins a case
//   plugin TYPE VERSION NAMESPACE   the creator
//   field NAME KIND VALUE...        an attribute; KIND is `declared` (in the type that the creator lists, as TensorRT's
//                                   parser does), int32, int64, float32, float64, char, or `empty` (no data)
//   input NAME DTYPE DIM...         DIM is a number, or AXIS=NUMBER for a dimension that is not known when building
//   data INPUT PATH                 raw bytes of an input, for enqueue; after a `bind`, of an input of those sizes
//   bind AXIS=NUMBER...             further sizes: shapes are evaluated for them too, workspace covers them
//   refuse                          runs the case: the creator must refuse the fields and say why
//   run                             runs the case: the whole life of the plugin
#pragma once

#include "shape_expressions.h"

#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>

namespace trtc::harness
{

using nvinfer1::DataType;

struct Dimension
{
    int64_t value{0};
    std::string axis; // empty: known when building
};

struct Tensor
{
    std::string name;
    DataType type{DataType::kFLOAT};
    std::vector<Dimension> dims;
};

struct Field
{
    std::string name;
    std::string kind;
    std::vector<std::string> values;
};

struct Case
{
    std::string label;
    std::string type;
    std::string version;
    std::string space;
    std::vector<Field> fields;
    std::vector<Tensor> inputs;
    std::vector<Sizes> bindings;                          // the first holds the sizes of the inputs as given
    std::vector<std::map<std::string, std::string>> data; // for each binding: paths by input; empty: none were given
    bool refuse{false};
};

struct TypeName
{
    DataType type;
    char const* name;
    int32_t bytes;
};

// Types of four bits are left out: no tensor of ours has one.
inline std::vector<TypeName> const& typeNames()
{
    static std::vector<TypeName> const sNames{{DataType::kFLOAT, "float32", 4}, {DataType::kHALF, "float16", 2},
        {DataType::kINT8, "int8", 1}, {DataType::kINT32, "int32", 4}, {DataType::kBOOL, "bool", 1},
        {DataType::kUINT8, "uint8", 1}, {DataType::kFP8, "float8", 1}, {DataType::kBF16, "bfloat16", 2},
        {DataType::kINT64, "int64", 8}};
    return sNames;
}

inline std::string nameOf(DataType type)
{
    for (auto const& known : typeNames())
    {
        if (known.type == type)
        {
            return known.name;
        }
    }
    return "type " + std::to_string(static_cast<int32_t>(type));
}

inline DataType typeOf(std::string const& name)
{
    for (auto const& known : typeNames())
    {
        if (name == known.name)
        {
            return known.type;
        }
    }
    throw std::runtime_error("no type is called " + name);
}

inline int64_t bytesOf(DataType type)
{
    for (auto const& known : typeNames())
    {
        if (known.type == type)
        {
            return known.bytes;
        }
    }
    throw std::runtime_error("the harness makes no tensors of " + nameOf(type));
}

inline std::pair<std::string, int64_t> axisAndNumber(std::string const& word)
{
    size_t const equals = word.find('=');
    return equals == std::string::npos
        ? std::pair{std::string{}, static_cast<int64_t>(std::stoll(word))}
        : std::pair{word.substr(0, equals), static_cast<int64_t>(std::stoll(word.substr(equals + 1U)))};
}

// Calls `run` with each case.
template <typename Run>
void readRequest(std::string const& path, Run const& run)
{
    std::ifstream file{path};
    if (!file)
    {
        throw std::runtime_error("cannot read " + path);
    }
    Case current;
    std::vector<Sizes> further;
    std::string line;
    while (std::getline(file, line))
    {
        std::istringstream words{line};
        std::string directive;
        if (!(words >> directive))
        {
            continue;
        }
        std::string word;
        if (directive == "case")
        {
            current = {};
            further.clear();
            words >> current.label;
        }
        else if (directive == "plugin")
        {
            words >> current.type >> current.version >> current.space;
        }
        else if (directive == "field")
        {
            Field field;
            words >> field.name >> field.kind;
            while (words >> word)
            {
                field.values.push_back(word);
            }
            current.fields.push_back(field);
        }
        else if (directive == "input")
        {
            Tensor tensor;
            words >> tensor.name >> word;
            tensor.type = typeOf(word);
            while (words >> word)
            {
                auto const [axis, value] = axisAndNumber(word);
                tensor.dims.push_back({value, axis});
            }
            current.inputs.push_back(tensor);
        }
        else if (directive == "data")
        {
            words >> word;
            current.data.resize(further.size() + 1U);
            words >> current.data.back()[word];
        }
        else if (directive == "bind")
        {
            Sizes sizes;
            while (words >> word)
            {
                sizes.insert(axisAndNumber(word));
            }
            further.push_back(sizes);
        }
        else if (directive == "run" || directive == "refuse")
        {
            current.refuse = directive == "refuse";
            Sizes given;
            for (auto const& tensor : current.inputs)
            {
                for (auto const& dim : tensor.dims)
                {
                    if (!dim.axis.empty())
                    {
                        given[dim.axis] = dim.value;
                    }
                }
            }
            current.bindings = {given};
            for (Sizes sizes : further)
            {
                sizes.insert(given.begin(), given.end());
                current.bindings.push_back(sizes);
            }
            current.data.resize(current.bindings.size());
            run(current);
        }
        else
        {
            throw std::runtime_error("no directive is called " + directive);
        }
    }
}

} // namespace trtc::harness
