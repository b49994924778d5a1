// Turns the GPU forms of the operators into IPluginV3s with their creators. Compiles with the headers of TensorRT 10.3
// (JetPack 6) and later, and links nothing of it.
#include <string>
#include <vector>

#include "common/export.h"
#include "common/parsed_call.h"
#include "common/tensorrt_sizes.h"
#include "common/tensorrt_state.h"

namespace trtc
{

namespace
{
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
                    if (!wanted.allowsRank(static_cast<size_t>(inputs[i].nbDims)))
                    {
                        error = mState.definition().opType + ": " + wanted.name + " has "
                            + std::to_string(inputs[i].nbDims) + " axes; it must have " + wanted.ranks() + ".";
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
