// What TensorRT hands over and keeps: its log, types, dimensions, and fields of attributes.
#pragma once

#include <cstring>
#include <exception>
#include <limits>
#include <string>
#include <vector>

#include <NvInferRuntime.h>

#include "common/contract.h"

namespace trtc
{

using nvinfer1::DataType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

constexpr int32_t kFAILED = -1;

inline nvinfer1::ILoggerFinder* gLoggerFinder = nullptr;

inline void logError(std::string const& message) noexcept
{
    nvinfer1::ILogger* const logger = gLoggerFinder == nullptr ? nullptr : gLoggerFinder->findLogger();
    if (logger != nullptr)
    {
        logger->log(nvinfer1::ILogger::Severity::kERROR, message.c_str());
    }
}

//! 0, or kFAILED after the sentence was logged. Nothing leaves the library as an exception.
template <typename Body>
int32_t guarded(Body const& body) noexcept
{
    try
    {
        Error const error = body();
        if (error.empty())
        {
            return 0;
        }
        logError(error);
    }
    catch (std::exception const& error)
    {
        logError(error.what());
    }
    return kFAILED;
}

//! Plugins have no UINT8: packed codes are the same bytes as INT8.
inline DataType trtType(DType dtype) noexcept
{
    switch (dtype)
    {
    case DType::kFLOAT32: return DataType::kFLOAT;
    case DType::kFLOAT16: return DataType::kHALF;
    case DType::kBFLOAT16: return DataType::kBF16;
    case DType::kINT64: return DataType::kINT64;
    case DType::kINT32: return DataType::kINT32;
    case DType::kUINT8: return DataType::kINT8;
    }
    return DataType::kFLOAT;
}

inline bool fromTrtType(DataType type, DType& dtype) noexcept
{
    for (DType const known : kDTYPES)
    {
        if (trtType(known) == type)
        {
            dtype = known;
            return true;
        }
    }
    return false;
}

inline Shape shapeOf(nvinfer1::Dims const& dims)
{
    return {dims.d, dims.d + dims.nbDims};
}

inline bool isSame(Shape const& shape, nvinfer1::Dims const& dims) noexcept
{
    bool same = shape.size() == static_cast<size_t>(dims.nbDims);
    for (size_t i = 0; same && i < shape.size(); ++i)
    {
        same = shape[i] == dims.d[i];
    }
    return same;
}

inline size_t indexOfInput(Contract const& contract, char const* name) noexcept
{
    size_t index = 0;
    while (std::strcmp(contract.inputs[index].name, name) != 0)
    {
        ++index;
    }
    return index;
}

//! Attributes as TensorRT writes them into an engine.
class Fields
{
public:
    void set(Attributes const& attributes)
    {
        mIntegers.clear();
        mReals.clear();
        mFields.clear();
        for (Attributes::Value const& value : attributes.values())
        {
            mIntegers.emplace_back(value.integers.begin(), value.integers.end());
            mReals.push_back(value.real);
        }
        for (size_t i = 0; i < attributes.values().size(); ++i)
        {
            Attributes::Value const& value = attributes.values()[i];
            bool const isReal = value.kind == AttributeKind::kFLOAT;
            mFields.emplace_back(value.name, isReal ? static_cast<void const*>(&mReals[i]) : mIntegers[i].data(),
                isReal ? PluginFieldType::kFLOAT32 : PluginFieldType::kINT32,
                isReal ? 1 : static_cast<int32_t>(mIntegers[i].size()));
        }
        mCollection = {static_cast<int32_t>(mFields.size()), mFields.data()};
    }

    PluginFieldCollection const* get() const noexcept
    {
        return &mCollection;
    }

private:
    std::vector<std::vector<int32_t>> mIntegers;
    std::vector<float> mReals;
    std::vector<PluginField> mFields;
    PluginFieldCollection mCollection{};
};

inline Error readField(
    Contract const& contract, AttributeContract const& wanted, PluginField const& given, Attributes& attributes)
{
    std::vector<int64_t> integers;
    float real = 0.0F;
    bool const isList = wanted.kind == AttributeKind::kINTS;
    bool fits = given.data != nullptr && (isList ? given.length >= 1 : given.length == 1);
    if (fits && wanted.kind == AttributeKind::kFLOAT)
    {
        fits = given.type == PluginFieldType::kFLOAT32;
        real = fits ? *static_cast<float const*>(given.data) : 0.0F;
    }
    else if (fits && given.type == PluginFieldType::kINT32)
    {
        auto const* const values = static_cast<int32_t const*>(given.data);
        integers.assign(values, values + given.length);
    }
    else if (fits && given.type == PluginFieldType::kINT64)
    {
        auto const* const values = static_cast<int64_t const*>(given.data);
        integers.assign(values, values + given.length);
        for (int64_t const value : integers)
        {
            fits = fits && value >= std::numeric_limits<int32_t>::min() && value <= std::numeric_limits<int32_t>::max();
        }
    }
    else
    {
        fits = false;
    }
    if (!fits)
    {
        constexpr char const* kKINDS[] = {"one INT32", "INT32s, at least one", "one FLOAT32"};
        return contract.opType() + ": the field " + wanted.name + " has type "
            + std::to_string(static_cast<int32_t>(given.type)) + " and length " + std::to_string(given.length)
            + "; it must be " + kKINDS[static_cast<size_t>(wanted.kind)] + ".";
    }
    attributes.add(wanted, std::move(integers), real);
    return {};
}

inline Error readFields(Contract const& contract, PluginFieldCollection const* fields, Attributes& attributes)
{
    for (AttributeContract const& wanted : contract.attributes)
    {
        PluginField const* found = nullptr;
        for (int32_t i = 0; fields != nullptr && i < fields->nbFields; ++i)
        {
            if (fields->fields[i].name != nullptr && std::strcmp(fields->fields[i].name, wanted.name) == 0)
            {
                found = &fields->fields[i];
            }
        }
        if (found == nullptr)
        {
            return contract.opType() + ": the field " + wanted.name + " is missing; export the model again.";
        }
        Error const error = readField(contract, wanted, *found, attributes);
        if (!error.empty())
        {
            return error;
        }
    }
    return checkAttributes(contract, attributes);
}

} // namespace trtc
