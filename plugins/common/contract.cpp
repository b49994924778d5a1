#include "common/contract.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cstring>

namespace trtc
{

namespace
{
struct DTypeFacts
{
    char const* name;
    size_t size;
    int32_t onnxNumber;
};

constexpr std::array<DTypeFacts, 6> kFACTS{{
    {"float32", 4, 1},
    {"float16", 2, 10},
    {"bfloat16", 2, 16},
    {"int64", 8, 7},
    {"int32", 4, 6},
    {"uint8", 1, 2},
}};

constexpr std::array<char const*, 3> kKINDS{"int", "ints", "float"};

DTypeFacts const& factsOf(DType dtype) noexcept
{
    return kFACTS[static_cast<size_t>(dtype)];
}

std::string number(double value)
{
    if (value == std::floor(value) && std::abs(value) < 1e15)
    {
        return std::to_string(static_cast<int64_t>(value));
    }
    return std::to_string(value);
}

std::string range(AttributeContract const& contract)
{
    bool const hasMinimum = std::isfinite(contract.minimum);
    bool const hasMaximum = std::isfinite(contract.maximum);
    if (hasMinimum && hasMaximum)
    {
        return number(contract.minimum) + " to " + number(contract.maximum);
    }
    if (!hasMinimum && !hasMaximum)
    {
        return "a finite number";
    }
    return hasMinimum ? "at least " + number(contract.minimum) : "at most " + number(contract.maximum);
}

std::string json(char const* text)
{
    return text == nullptr ? "null" : "\"" + std::string(text) + "\"";
}

std::string json(TensorContract const& tensor)
{
    std::string dtypes;
    for (DType const dtype : tensor.dtypes)
    {
        dtypes += (dtypes.empty() ? "" : ", ") + json(nameOf(dtype));
    }
    return "{\"name\": " + json(tensor.name) + ", \"rank\": " + std::to_string(tensor.rank) + ", \"dtypes\": [" + dtypes
        + "], \"same_dtype_as\": " + json(tensor.sameDtypeAs) + ", \"dtype_attribute\": " + json(tensor.dtypeAttribute)
        + ", \"alias_of\": " + json(tensor.aliasOf)
        + ", \"least_rank\": " + (tensor.leastRank == 0 ? std::string("null") : std::to_string(tensor.leastRank)) + "}";
}

std::string json(AttributeContract const& attribute)
{
    auto const bound = [](double value) { return std::isfinite(value) ? number(value) : std::string("null"); };
    return "{\"name\": " + json(attribute.name) + ", \"kind\": " + json(kKINDS[static_cast<size_t>(attribute.kind)])
        + ", \"minimum\": " + bound(attribute.minimum) + ", \"maximum\": " + bound(attribute.maximum) + "}";
}

template <typename T>
std::string jsonList(std::vector<T> const& items)
{
    std::string text;
    for (T const& item : items)
    {
        text += (text.empty() ? "" : ", ") + json(item);
    }
    return "[" + text + "]";
}

//! Sizes whose products overflow somewhere are possible only beside an axis of 0: nothing else fits into a memory.
Error checkProduct(char const* name, Shape const& shape)
{
    constexpr int64_t kMOST = int64_t{1} << 48;
    constexpr int64_t kMOST_BESIDE_ZERO = int64_t{1} << 28;
    bool const isEmpty = std::find(shape.begin(), shape.end(), 0) != shape.end();
    int64_t left = isEmpty ? kMOST_BESIDE_ZERO : kMOST;
    for (int64_t const size : shape)
    {
        left /= std::max<int64_t>(size, 1);
    }
    return left > 0 ? Error{}
                    : std::string(name) + " has shape " + textOf(shape) + ", which is too large; at most "
            + std::to_string(kMOST) + " elements are allowed, and axes with a product of at most "
            + std::to_string(kMOST_BESIDE_ZERO) + " beside an axis of 0.";
}
} // namespace

char const* nameOf(DType dtype) noexcept
{
    return factsOf(dtype).name;
}

size_t sizeOf(DType dtype) noexcept
{
    return factsOf(dtype).size;
}

int32_t onnxNumber(DType dtype) noexcept
{
    return factsOf(dtype).onnxNumber;
}

Attributes::Value const& Attributes::find(char const* name) const noexcept
{
    for (Value const& value : mValues)
    {
        if (std::strcmp(value.name, name) == 0)
        {
            return value;
        }
    }
    std::abort(); // an operator asks for an attribute that its own contract does not have
}

int64_t Attributes::integer(char const* name) const noexcept
{
    return find(name).integers.front();
}

std::vector<int64_t> const& Attributes::integers(char const* name) const noexcept
{
    return find(name).integers;
}

float Attributes::real(char const* name) const noexcept
{
    return find(name).real;
}

Error checkAttributes(Contract const& contract, Attributes const& attributes)
{
    for (size_t i = 0; i < contract.attributes.size(); ++i)
    {
        AttributeContract const& wanted = contract.attributes[i];
        Attributes::Value const& given = attributes.values()[i];
        std::vector<double> values(given.integers.begin(), given.integers.end());
        if (wanted.kind == AttributeKind::kFLOAT)
        {
            values = {given.real};
        }
        for (double const value : values)
        {
            if (!(value >= wanted.minimum && value <= wanted.maximum))
            {
                return contract.opType() + ": " + wanted.name + " is " + number(value) + "; allowed is " + range(wanted)
                    + ".";
            }
        }
    }
    return {};
}

Error shapesOf(Contract const& contract, Attributes const& attributes, Shapes const& inputs, Shapes& outputs)
{
    for (size_t i = 0; i < contract.inputs.size(); ++i)
    {
        TensorContract const& wanted = contract.inputs[i];
        if (!wanted.allowsRank(inputs[i].size()))
        {
            return contract.opType() + ": " + wanted.name + " has shape " + textOf(inputs[i]) + "; it must have "
                + wanted.ranks() + " axes.";
        }
    }
    Error error;
    for (size_t i = 0; error.empty() && i < contract.inputs.size(); ++i)
    {
        error = checkProduct(contract.inputs[i].name, inputs[i]);
    }
    error = error.empty() ? contract.check(attributes, inputs) : error;
    outputs = error.empty() ? contract.shapes(attributes, inputs) : Shapes(contract.outputs.size());
    for (size_t i = 0; error.empty() && i < contract.outputs.size(); ++i)
    {
        error = checkProduct(contract.outputs[i].name, outputs[i]);
    }
    return error.empty() ? error : contract.opType() + ": " + error;
}

DTypes outputTypesOf(Contract const& contract, Attributes const& attributes, DTypes const& inputTypes)
{
    DTypes types;
    for (TensorContract const& output : contract.outputs)
    {
        DType type = output.dtypes.empty() ? DType::kFLOAT32 : output.dtypes.front();
        for (size_t i = 0; output.sameDtypeAs != nullptr && i < contract.inputs.size(); ++i)
        {
            type = std::strcmp(contract.inputs[i].name, output.sameDtypeAs) == 0 ? inputTypes[i] : type;
        }
        for (size_t i = 0; output.dtypeAttribute != nullptr && i < output.dtypes.size(); ++i)
        {
            bool const isIt = onnxNumber(output.dtypes[i]) == attributes.integer(output.dtypeAttribute);
            type = isIt ? output.dtypes[i] : type;
        }
        types.push_back(type);
    }
    return types;
}

std::string textOf(Shape const& shape)
{
    std::string text;
    for (int64_t const size : shape)
    {
        text += (text.empty() ? "" : ", ") + std::to_string(size);
    }
    return "[" + text + "]";
}

Error checkShape(char const* name, Shape const& shape, Shape const& wanted, char const* letters)
{
    bool fits = shape.size() == wanted.size();
    for (size_t i = 0; fits && i < shape.size(); ++i)
    {
        fits = wanted[i] == -1 || shape[i] == wanted[i];
    }
    if (fits)
    {
        return {};
    }
    std::string sizes;
    for (size_t i = 0; i < wanted.size(); ++i)
    {
        sizes += (i == 0 ? "" : ", ") + (wanted[i] == -1 ? std::string(1, letters[i]) : std::to_string(wanted[i]));
    }
    return std::string(name) + " has shape " + textOf(shape) + "; it must be [" + sizes + "] with axes " + letters
        + ".";
}

Error checkBroadcast(char const* name, Shape const& shape, std::vector<Shape> const& allowed, char const* axes)
{
    bool fits = shape.size() == allowed.size();
    std::string sizes;
    for (size_t i = 0; i < allowed.size(); ++i)
    {
        Shape const& some = allowed[i];
        fits = fits && std::find(some.begin(), some.end(), shape[i]) != some.end();
        for (size_t j = 0; j < some.size(); ++j)
        {
            bool const isNew = std::find(some.begin(), some.begin() + static_cast<ptrdiff_t>(j), some[j])
                == some.begin() + static_cast<ptrdiff_t>(j);
            sizes += isNew ? (j > 0 ? " | " : i > 0 ? ", " : "") + std::to_string(some[j]) : "";
        }
    }
    return fits
        ? Error{}
        : std::string(name) + " has shape " + textOf(shape) + "; it must be [" + sizes + "] with axes " + axes + ".";
}

Error checkTokens(int64_t numTokens)
{
    return numTokens <= kMOST_TOKENS ? Error{}
                                     : "N=" + std::to_string(numTokens) + " tokens are too many; at most "
            + std::to_string(kMOST_TOKENS) + " are allowed.";
}

std::string describe(char const* kind, std::vector<Contract const*> const& contracts)
{
    std::string operators;
    for (Contract const* contract : contracts)
    {
        operators += operators.empty() ? "" : ", ";
        operators += "{\"name\": " + json(contract->name) + ", \"op_type\": " + json(contract->opType().c_str())
            + ", \"version\": " + std::to_string(contract->version) + ", \"inputs\": " + jsonList(contract->inputs)
            + ", \"outputs\": " + jsonList(contract->outputs) + ", \"attributes\": " + jsonList(contract->attributes)
            + "}";
    }
    return "{\"kind\": " + json(kind) + ", \"domain\": " + json(kDOMAIN) + ", \"operators\": [" + operators + "]}";
}

} // namespace trtc
