// Turns the GPU forms of the operators into IPluginV3s with their creators. Compiles with the headers of TensorRT 10.3
// (JetPack 6) and later, and links nothing of it.
#include <cstring>
#include <exception>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include <NvInferRuntime.h>

#include "common/cuda_op.h"
#include "common/export.h"
#include "common/parsed_call.h"
#include "common/tensorrt_sizes.h"

namespace trtc
{

namespace
{
using nvinfer1::DataType;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;

constexpr int32_t kFAILED = -1;

nvinfer1::ILoggerFinder* gLoggerFinder = nullptr;

void logError(std::string const& message) noexcept
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
DataType trtType(DType dtype) noexcept
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

bool fromTrtType(DataType type, DType& dtype) noexcept
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

Shape shapeOf(nvinfer1::Dims const& dims)
{
    return {dims.d, dims.d + dims.nbDims};
}

bool isSame(Shape const& shape, nvinfer1::Dims const& dims) noexcept
{
    bool same = shape.size() == static_cast<size_t>(dims.nbDims);
    for (size_t i = 0; same && i < shape.size(); ++i)
    {
        same = shape[i] == dims.d[i];
    }
    return same;
}

size_t indexOfInput(Contract const& contract, char const* name) noexcept
{
    size_t index = 0;
    while (std::strcmp(contract.inputs[index].name, name) != 0)
    {
        ++index;
    }
    return index;
}

//! Everything about a plugin that is not TensorRT's interface.
struct Definition
{
    Contract const* contract;
    GpuForm const* gpu;
    uint32_t number;
    std::string opType;
    std::string version;
};

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

Error readField(
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

Error readFields(Contract const& contract, PluginFieldCollection const* fields, Attributes& attributes)
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

//! What a plugin knows and does, behind TensorRT's interfaces.
class State
{
public:
    State(Definition const& definition, Attributes attributes)
        : mDefinition(definition)
        , mAttributes(std::move(attributes))
    {
        mFields.set(mAttributes);
    }

    State(State const& other)
        : State(other.mDefinition, other.mAttributes)
    {
    }

    State& operator=(State const&) = delete;

    Definition const& definition() const noexcept
    {
        return mDefinition;
    }

    Contract const& contract() const noexcept
    {
        return *mDefinition.contract;
    }

    Attributes const& attributes() const noexcept
    {
        return mAttributes;
    }

    PluginFieldCollection const* fields() const noexcept
    {
        return mFields.get();
    }

    //! Whether tensor `index` may have `type`, given the types of the tensors before it.
    template <typename TypeAt>
    bool allows(size_t index, DataType type, TypeAt const& typeAt) const
    {
        size_t const numInputs = contract().inputs.size();
        DType dtype{};
        if (!fromTrtType(type, dtype))
        {
            return false;
        }
        TensorContract const& tensor =
            index < numInputs ? contract().inputs[index] : contract().outputs[index - numInputs];
        if (tensor.sameDtypeAs != nullptr)
        {
            return typeAt(indexOfInput(contract(), tensor.sameDtypeAs)) == type;
        }
        bool allowed = false;
        for (DType const known : tensor.dtypes)
        {
            bool const isChosen =
                tensor.dtypeAttribute == nullptr || onnxNumber(known) == mAttributes.integer(tensor.dtypeAttribute);
            allowed = allowed || (known == dtype && isChosen);
        }
        return allowed;
    }

    Error outputTypes(DataType* outputs, int32_t numOutputs, DataType const* inputs, int32_t numInputs) const
    {
        Error const error = checkCounts(numInputs, numOutputs);
        if (!error.empty())
        {
            return error;
        }
        DTypes types;
        for (int32_t i = 0; i < numInputs; ++i)
        {
            DType dtype{};
            if (!allows(static_cast<size_t>(i), inputs[i], [&](size_t leader) { return inputs[leader]; }))
            {
                return mDefinition.opType + ": " + contract().inputs[static_cast<size_t>(i)].name
                    + " has a type that the operator does not take.";
            }
            fromTrtType(inputs[i], dtype);
            types.push_back(dtype);
        }
        DTypes const found = outputTypesOf(contract(), mAttributes, types);
        for (size_t i = 0; i < found.size(); ++i)
        {
            outputs[i] = trtType(found[i]);
        }
        return {};
    }

    Error checkCounts(int32_t numInputs, int32_t numOutputs) const
    {
        size_t const wantedInputs = contract().inputs.size();
        size_t const wantedOutputs = contract().outputs.size();
        if (static_cast<size_t>(numInputs) == wantedInputs && static_cast<size_t>(numOutputs) == wantedOutputs)
        {
            return {};
        }
        return mDefinition.opType + ": it has " + std::to_string(wantedInputs) + " inputs and "
            + std::to_string(wantedOutputs) + " outputs; given are " + std::to_string(numInputs) + " and "
            + std::to_string(numOutputs) + ".";
    }

    //! Takes over shapes and types, and checks them. `at` gives the dimensions and the type of tensor i.
    template <typename At>
    Error take(At const& at)
    {
        Error error = read(at);
        if (!error.empty())
        {
            mInputs.clear(); // so that an enqueue after it finds out by itself, and does not run
        }
        return error;
    }

    size_t workspaceBytes() const
    {
        return mDefinition.gpu->workspaceBytes == nullptr ? 0 : mDefinition.gpu->workspaceBytes(shapes());
    }

    Error enqueue(nvinfer1::PluginTensorDesc const* inputs, void const* const* inputData, void* const* outputData,
        void* workspace, cudaStream_t stream)
    {
        if (hasFault())
        {
            return takeFault(cudaRegistry().contracts());
        }
        bool known = mInputs.size() == contract().inputs.size();
        for (size_t i = 0; known && i < mInputs.size(); ++i)
        {
            known = isSame(mInputs[i], inputs[i].dims);
        }
        if (!known) // a size that an operator before this one decided
        {
            Error const error = take([&](size_t i) { return inputs[i]; });
            if (!error.empty())
            {
                return error;
            }
        }
        FaultSlot const slot = faultSlot(mDefinition.number);
        if (slot.word == nullptr)
        {
            return mDefinition.opType + ": no mapped host memory could be had for reporting errors.";
        }
        cudaError_t const status = mDefinition.gpu->enqueue({shapes(), inputData, outputData, workspace, slot, stream});
        return status == cudaSuccess ? Error{}
                                     : mDefinition.opType + ": the launch failed: " + cudaGetErrorString(status) + ".";
    }

    int32_t aliasedInput(int32_t output) const noexcept
    {
        char const* const name = contract().outputs[static_cast<size_t>(output)].aliasOf;
        return name == nullptr ? -1 : static_cast<int32_t>(indexOfInput(contract(), name));
    }

private:
    GpuShapes const& shapes() const
    {
        return mShapes;
    }

    template <typename At>
    Error read(At const& at)
    {
        mInputs.clear();
        mInputTypes.clear();
        for (size_t i = 0; i < contract().inputs.size(); ++i)
        {
            DType dtype{};
            mInputs.push_back(shapeOf(at(i).dims));
            if (!fromTrtType(at(i).type, dtype))
            {
                return mDefinition.opType + ": " + contract().inputs[i].name
                    + " has a type that the operator does not take.";
            }
            mInputTypes.push_back(dtype);
        }
        mOutputTypes = outputTypesOf(contract(), mAttributes, mInputTypes);
        Error error = shapesOf(contract(), mAttributes, mInputs, mOutputs);
        return error.empty() ? checkGpuLimits(*mDefinition.gpu, shapes()) : error;
    }

    Definition const& mDefinition;
    Attributes mAttributes;
    Fields mFields;
    Shapes mInputs;
    Shapes mOutputs;
    DTypes mInputTypes;
    DTypes mOutputTypes;
    GpuShapes mShapes{mAttributes, mInputs, mOutputs, mInputTypes, mOutputTypes};
};

//! The interfaces, each call of one line. BuildInterface has aliasing from version 2 on.
template <typename BuildInterface>
class Plugin : public nvinfer1::IPluginV3,
               public nvinfer1::IPluginV3OneCore,
               public BuildInterface,
               public nvinfer1::IPluginV3OneRuntime
{
public:
    Plugin(Definition const& definition, Attributes attributes)
        : mState(definition, std::move(attributes))
    {
    }

    Plugin(Plugin const& other) = default;
    Plugin& operator=(Plugin const&) = delete;

    nvinfer1::IPluginCapability* getCapabilityInterface(nvinfer1::PluginCapabilityType type) noexcept override
    {
        switch (type)
        {
        case nvinfer1::PluginCapabilityType::kCORE: return static_cast<nvinfer1::IPluginV3OneCore*>(this);
        case nvinfer1::PluginCapabilityType::kBUILD: return static_cast<BuildInterface*>(this);
        case nvinfer1::PluginCapabilityType::kRUNTIME: return static_cast<nvinfer1::IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }

    nvinfer1::AsciiChar const* getPluginName() const noexcept override
    {
        return mState.definition().opType.c_str();
    }

    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override
    {
        return mState.definition().version.c_str();
    }

    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override
    {
        return kDOMAIN;
    }

    int32_t getNbOutputs() const noexcept override
    {
        return static_cast<int32_t>(mState.contract().outputs.size());
    }

    int32_t getOutputDataTypes(
        DataType* outputs, int32_t numOutputs, DataType const* inputs, int32_t numInputs) const noexcept override
    {
        return guarded([&] { return mState.outputTypes(outputs, numOutputs, inputs, numInputs); });
    }

    int32_t getOutputShapes(nvinfer1::DimsExprs const* inputs, int32_t numInputs, nvinfer1::DimsExprs const* /*shapes*/,
        int32_t /*numShapes*/, nvinfer1::DimsExprs* outputs, int32_t numOutputs,
        nvinfer1::IExprBuilder& builder) noexcept override
    {
        return guarded(
            [&]
            {
                Error error = mState.checkCounts(numInputs, numOutputs);
                for (int32_t i = 0; error.empty() && i < numInputs; ++i)
                {
                    TensorContract const& wanted = mState.contract().inputs[static_cast<size_t>(i)];
                    if (inputs[i].nbDims != wanted.rank)
                    {
                        error = mState.definition().opType + ": " + wanted.name + " has "
                            + std::to_string(inputs[i].nbDims) + " axes; it must have " + std::to_string(wanted.rank)
                            + ".";
                    }
                }
                if (error.empty())
                {
                    TrtSizes sizes(builder);
                    auto const found =
                        mState.contract().symbolicShapes(mState.attributes(), sizes.sizesOf(inputs, numInputs));
                    for (size_t i = 0; i < found.size(); ++i)
                    {
                        sizes.set(outputs[i], found[i]);
                    }
                }
                return error;
            });
    }

    bool supportsFormatCombination(int32_t position, nvinfer1::DynamicPluginTensorDesc const* tensors,
        int32_t numInputs, int32_t numOutputs) noexcept override
    {
        bool supported = false;
        guarded(
            [&]
            {
                Error error = mState.checkCounts(numInputs, numOutputs);
                if (error.empty())
                {
                    nvinfer1::PluginTensorDesc const& tensor = tensors[position].desc;
                    supported = tensor.format == nvinfer1::TensorFormat::kLINEAR
                        && mState.allows(static_cast<size_t>(position), tensor.type,
                            [&](size_t leader) { return tensors[leader].desc.type; });
                }
                return error;
            });
        return supported;
    }

    int32_t configurePlugin(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t numInputs,
        nvinfer1::DynamicPluginTensorDesc const* /*outputs*/, int32_t numOutputs) noexcept override
    {
        return guarded(
            [&]
            {
                Error error = mState.checkCounts(numInputs, numOutputs);
                using Tensor = nvinfer1::DynamicPluginTensorDesc;
                for (auto const dims : {&Tensor::min, &Tensor::max})
                {
                    error = error.empty() ? mState.take([&](size_t i) { return at(inputs[i], dims); }) : error;
                }
                return error;
            });
    }

    size_t getWorkspaceSize(nvinfer1::DynamicPluginTensorDesc const* inputs, int32_t /*numInputs*/,
        nvinfer1::DynamicPluginTensorDesc const* /*outputs*/, int32_t /*numOutputs*/) const noexcept override
    {
        size_t bytes = 0;
        guarded(
            [&]
            {
                State largest(mState);
                Error error =
                    largest.take([&](size_t i) { return at(inputs[i], &nvinfer1::DynamicPluginTensorDesc::max); });
                bytes = error.empty() ? largest.workspaceBytes() : 0;
                return error;
            });
        return bytes;
    }

    int32_t onShapeChange(nvinfer1::PluginTensorDesc const* inputs, int32_t numInputs,
        nvinfer1::PluginTensorDesc const* /*outputs*/, int32_t numOutputs) noexcept override
    {
        return guarded(
            [&]
            {
                Error const error = mState.checkCounts(numInputs, numOutputs);
                return error.empty() ? mState.take([&](size_t i) { return inputs[i]; }) : error;
            });
    }

    int32_t enqueue(nvinfer1::PluginTensorDesc const* inputs, nvinfer1::PluginTensorDesc const* /*outputs*/,
        void const* const* inputData, void* const* outputData, void* workspace, cudaStream_t stream) noexcept override
    {
        return guarded([&] { return mState.enqueue(inputs, inputData, outputData, workspace, stream); });
    }

    nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* /*context*/) noexcept override
    {
        faultSlot(mState.definition().number); // allocates here, so that no enqueue has to
        return clone();
    }

    PluginFieldCollection const* getFieldsToSerialize() noexcept override
    {
        return mState.fields();
    }

protected:
    State const& state() const noexcept
    {
        return mState;
    }

private:
    static nvinfer1::PluginTensorDesc at(
        nvinfer1::DynamicPluginTensorDesc const& tensor, nvinfer1::Dims nvinfer1::DynamicPluginTensorDesc::* dims)
    {
        nvinfer1::PluginTensorDesc desc = tensor.desc;
        desc.dims = tensor.*dims;
        return desc;
    }

    State mState;
};

//! What it makes and clones is owned by TensorRT.
template <typename Made, typename... Arguments>
nvinfer1::IPluginV3* make(Arguments&&... arguments) noexcept
{
    Made* made = nullptr;
    guarded(
        [&]
        {
            made = new Made(std::forward<Arguments>(arguments)...);
            return Error{};
        });
    return made;
}

class PlainPlugin final : public Plugin<nvinfer1::IPluginV3OneBuild>
{
public:
    using Plugin::Plugin;

    nvinfer1::IPluginV3* clone() noexcept override
    {
        return make<PlainPlugin>(*this);
    }
};

class AliasingPlugin final : public Plugin<nvinfer1::IPluginV3OneBuildV2>
{
public:
    using Plugin::Plugin;

    nvinfer1::IPluginV3* clone() noexcept override
    {
        return make<AliasingPlugin>(*this);
    }

    int32_t getAliasedInput(int32_t output) noexcept override
    {
        return state().aliasedInput(output);
    }
};

class Creator final : public nvinfer1::IPluginCreatorV3One
{
public:
    explicit Creator(Definition definition)
        : mDefinition(std::move(definition))
    {
        for (AttributeContract const& attribute : mDefinition.contract->attributes)
        {
            bool const isReal = attribute.kind == AttributeKind::kFLOAT;
            mFields.emplace_back(
                attribute.name, nullptr, isReal ? PluginFieldType::kFLOAT32 : PluginFieldType::kINT32, 1);
        }
        mCollection = {static_cast<int32_t>(mFields.size()), mFields.data()};
        for (TensorContract const& output : mDefinition.contract->outputs)
        {
            mAliases = mAliases || output.aliasOf != nullptr;
        }
    }

    nvinfer1::IPluginV3* createPlugin(nvinfer1::AsciiChar const* /*name*/, PluginFieldCollection const* fields,
        nvinfer1::TensorRTPhase /*phase*/) noexcept override
    {
        nvinfer1::IPluginV3* made = nullptr;
        guarded(
            [&]
            {
                Attributes attributes;
                Error error = readFields(*mDefinition.contract, fields, attributes);
                if (error.empty())
                {
                    made = mAliases ? make<AliasingPlugin>(mDefinition, std::move(attributes))
                                    : make<PlainPlugin>(mDefinition, std::move(attributes));
                }
                return error;
            });
        return made;
    }

    PluginFieldCollection const* getFieldNames() noexcept override
    {
        return &mCollection;
    }

    nvinfer1::AsciiChar const* getPluginName() const noexcept override
    {
        return mDefinition.opType.c_str();
    }

    nvinfer1::AsciiChar const* getPluginVersion() const noexcept override
    {
        return mDefinition.version.c_str();
    }

    nvinfer1::AsciiChar const* getPluginNamespace() const noexcept override
    {
        return kDOMAIN;
    }

private:
    Definition mDefinition;
    std::vector<PluginField> mFields;
    PluginFieldCollection mCollection{};
    bool mAliases{false};
};

//! One for each GPU form of this library.
std::vector<nvinfer1::IPluginCreatorInterface*> makeCreators()
{
    std::vector<nvinfer1::IPluginCreatorInterface*> creators;
    for (GpuForm const& form : cudaRegistry().forms())
    {
        Contract const& contract = *form.contract;
        auto const number = static_cast<uint32_t>(creators.size());
        creators.push_back(
            new Creator({&contract, &form, number, contract.opType(), std::to_string(contract.version)}));
    }
    return creators;
}
} // namespace

} // namespace trtc

//! Entry points of a plugin library that TensorRT loads at run time.
TRTC_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder* finder)
{
    trtc::gLoggerFinder = finder;
}

TRTC_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count)
{
    static auto const* const sCreators = new auto(trtc::makeCreators()); // TensorRT keeps them until the process ends
    count = static_cast<int32_t>(sCreators->size());
    return sCreators->data();
}

TRTC_EXPORT char const* trtcDescribe()
{
    static std::string const sText = trtc::describe("tensorrt", trtc::cudaRegistry().contracts());
    return sText.c_str();
}

TRTC_EXPORT int32_t trtcOutputShapes(
    TrtcCall const* call, char* text, size_t textBytes, char* message, size_t messageBytes)
{
    return trtc::outputShapes(trtc::cudaRegistry().contracts(), *call, text, textBytes, message, messageBytes);
}

//! After a synchronisation: 0 if no kernel found a mistake in its data since the last call, else 1 and a sentence.
TRTC_EXPORT int32_t trtcTakeFault(char* message, size_t messageBytes)
{
    return trtc::answer([] { return trtc::takeFault(trtc::cudaRegistry().contracts()); }, message, messageBytes);
}
