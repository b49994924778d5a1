// One sound plugin and, under other names, the same plugin with one fault each: what the harness must find.
// y [B, N - num_dropped, C] = scale * x [B, N, C]; list is only carried along.

#include <NvInferRuntime.h>

#include "common/cuda_common.cuh"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

namespace
{

using namespace nvinfer1;

constexpr char const* kNAMES[] = {"Sound", "ReadsDimensions", "DividesByZero", "LooksAhead", "TakesAnyFormat",
    "TooManyFormats", "WrongShape", "TakesTooFew", "BoolOutput", "LosesFields", "ChangesFields", "NoClone",
    "ForgetfulClone", "SharedContext", "OneContext", "ZeroTactic", "WrongAlias", "TakesAnything", "RefusesSilently",
    "WrongName", "WritesBeyond", "WritesBefore", "WritesInput", "WritesBeyondWorkspace", "OtherBits", "FailsToRun",
    "LargeSize", "KeepsShapes", "CountsShapes"};
constexpr char const* kNAMESPACE = "example";

ILoggerFinder* gFinder = nullptr;

void log(std::string const& message)
{
    if (gFinder != nullptr && gFinder->findLogger() != nullptr)
    {
        gFinder->findLogger()->log(ILogger::Severity::kERROR, message.c_str());
    }
}

__global__ void scaleKernel(float const* x, float* y, int rowsIn, int rowsOut, int columns, float scale)
{
    int const row = static_cast<int>(blockIdx.x) % rowsOut;
    int const item = static_cast<int>(blockIdx.x) / rowsOut;
    for (int c = static_cast<int>(threadIdx.x); c < columns; c += static_cast<int>(blockDim.x))
    {
        y[(item * rowsOut + row) * columns + c] = scale * x[(item * rowsIn + row) * columns + c];
    }
}

struct Settings
{
    int64_t numDropped{0};
    float scale{1.0F};
    std::vector<int64_t> list;
};

class Example final : public IPluginV3, public IPluginV3OneCore, public IPluginV3OneBuildV2, public IPluginV3OneRuntime
{
public:
    Example(std::string const& name, Settings const& settings)
        : mName(name)
        , mSettings(settings)
    {
    }

    bool is(char const* fault) const
    {
        return mName == fault;
    }

    IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override
    {
        switch (type)
        {
        case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
        case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
        case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
        }
        return nullptr;
    }

    IPluginV3* clone() noexcept override
    {
        return is("NoClone") ? nullptr : new Example(mName, is("ForgetfulClone") ? Settings{} : mSettings);
    }

    AsciiChar const* getPluginName() const noexcept override
    {
        return is("WrongName") ? "Sound" : mName.c_str();
    }

    AsciiChar const* getPluginVersion() const noexcept override
    {
        return "1";
    }

    AsciiChar const* getPluginNamespace() const noexcept override
    {
        return kNAMESPACE;
    }

    int32_t getNbOutputs() const noexcept override
    {
        return is("LargeSize") ? 2 : 1;
    }

    int32_t getOutputDataTypes(
        DataType* outputs, int32_t nbOutputs, DataType const* inputs, int32_t nbInputs) const noexcept override
    {
        if ((nbInputs != 1 || nbOutputs != getNbOutputs()) && !is("TakesTooFew"))
        {
            return -1;
        }
        outputs[0] = is("BoolOutput") ? DataType::kBOOL : inputs[0];
        if (nbOutputs == 2)
        {
            outputs[1] = DataType::kINT32;
        }
        return 0;
    }

    int32_t getOutputShapes(DimsExprs const* inputs, int32_t nbInputs, DimsExprs const*, int32_t, DimsExprs* outputs,
        int32_t nbOutputs, IExprBuilder& builder) noexcept override
    {
        if (nbInputs != 1 || nbOutputs != getNbOutputs() || inputs[0].nbDims != 3)
        {
            return -1;
        }
        bool const isKnown = inputs[0].d[1]->isConstant();
        int64_t const dropped = mSettings.numDropped + (is("WrongShape") && isKnown ? 1 : 0);
        outputs[0] = inputs[0];
        outputs[0].d[1] = builder.operation(DimensionOperation::kSUB, *inputs[0].d[1], *builder.constant(dropped));
        if (is("ReadsDimensions"))
        {
            outputs[0].d[1] = builder.constant(std::max<int64_t>(inputs[0].d[1]->getConstantValue(), 7) - dropped);
        }
        if (is("DividesByZero"))
        {
            outputs[0].d[1] = builder.operation(DimensionOperation::kFLOOR_DIV, *inputs[0].d[1], *builder.constant(0));
        }
        if (nbOutputs == 2)
        {
            outputs[0].d[1] = builder.declareSizeTensor(1, *builder.constant(1), *outputs[0].d[1]);
            outputs[1].nbDims = 0;
        }
        return 0;
    }

    bool supportsFormatCombination(
        int32_t pos, DynamicPluginTensorDesc const* inOut, int32_t nbInputs, int32_t nbOutputs) noexcept override
    {
        if (nbInputs != 1 || nbOutputs != getNbOutputs())
        {
            return false;
        }
        PluginTensorDesc const& desc = inOut[pos].desc;
        if (is("LooksAhead") && pos == 0 && inOut[1].desc.type == DataType::kHALF)
        {
            return false;
        }
        bool const isLinear = desc.format == TensorFormat::kLINEAR;
        if (pos == 1)
        {
            return isLinear && (desc.type == inOut[0].desc.type || is("TooManyFormats"));
        }
        return pos == 2 ? desc.type == DataType::kINT32 && isLinear
                        : (desc.type == DataType::kFLOAT || is("TooManyFormats")) && (isLinear || is("TakesAnyFormat"));
    }

    int32_t getFormatCombinationLimit() noexcept override
    {
        return 20;
    }

    int32_t configurePlugin(
        DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*, int32_t) noexcept override
    {
        return 0;
    }

    size_t getWorkspaceSize(
        DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*, int32_t) const noexcept override
    {
        return 32U;
    }

    int32_t getNbTactics() noexcept override
    {
        return is("ZeroTactic") ? 1 : 0;
    }

    int32_t getValidTactics(int32_t* tactics, int32_t) noexcept override
    {
        tactics[0] = 0;
        return 0;
    }

    int32_t getAliasedInput(int32_t) noexcept override
    {
        return is("WrongAlias") ? 0 : -1;
    }

    int32_t onShapeChange(PluginTensorDesc const* in, int32_t, PluginTensorDesc const*, int32_t) noexcept override
    {
        mBatch = mBatch == 0 ? in[0].dims.d[0] : mBatch;
        ++mChanges;
        return 0;
    }

    int32_t enqueue(PluginTensorDesc const* in, PluginTensorDesc const* out, void const* const* inputs,
        void* const* outputs, void* workspace, cudaStream_t stream) noexcept override
    {
        static int sCalls = 0;
        Dims const& from = in[0].dims;
        Dims const& to = out[0].dims;
        auto const* x = static_cast<float const*>(inputs[0]);
        auto* y = static_cast<float*>(outputs[0]);
        float scale = mSettings.scale + (is("OtherBits") ? static_cast<float>(++sCalls) : 0.0F);
        scale += is("KeepsShapes") ? static_cast<float>(mBatch)
            : is("CountsShapes")   ? static_cast<float>(mChanges)
                                   : 0.0F;
        cudaError_t status = trtc::launchKernel(scaleKernel, dim3(static_cast<unsigned>(to.d[0] * to.d[1])), dim3(32),
            0, stream, x, y, from.d[1], to.d[1], to.d[2], scale);
        int64_t const values = to.d[0] * to.d[1] * to.d[2];
        unsigned char const byte = 1U;
        if (is("WritesBeyond"))
        {
            status = cudaMemcpyAsync(y + values, &byte, 1U, cudaMemcpyDefault, stream);
        }
        if (is("WritesBefore"))
        {
            status = cudaMemcpyAsync(reinterpret_cast<char*>(y) - 1, &byte, 1U, cudaMemcpyDefault, stream);
        }
        if (is("WritesInput"))
        {
            status = cudaMemsetAsync(const_cast<void*>(inputs[0]), 0, 4U, stream);
        }
        if (is("WritesBeyondWorkspace"))
        {
            status = cudaMemsetAsync(workspace, 1, 33U, stream);
        }
        if (is("LargeSize"))
        {
            auto const size = static_cast<int32_t>(to.d[1] + 1);
            status = cudaMemcpyAsync(outputs[1], &size, sizeof(size), cudaMemcpyDefault, stream);
        }
        return is("FailsToRun") ? 1 : static_cast<int32_t>(status);
    }

    IPluginV3* attachToContext(IPluginResourceContext*) noexcept override
    {
        if (is("SharedContext"))
        {
            return this;
        }
        if (is("OneContext") && mAttached++ > 0)
        {
            return nullptr;
        }
        return clone();
    }

    PluginFieldCollection const* getFieldsToSerialize() noexcept override
    {
        mFields.clear();
        mFields.emplace_back("num_dropped", &mSettings.numDropped, PluginFieldType::kINT64, 1);
        if (!is("LosesFields"))
        {
            mFields.emplace_back("scale", &mSettings.scale, PluginFieldType::kFLOAT32, 1);
        }
        mFields.emplace_back(
            "list", mSettings.list.data(), PluginFieldType::kINT64, static_cast<int32_t>(mSettings.list.size()));
        mCollection = {static_cast<int32_t>(mFields.size()), mFields.data()};
        return &mCollection;
    }

private:
    std::string mName;
    Settings mSettings;
    std::vector<PluginField> mFields;
    PluginFieldCollection mCollection{};
    int mAttached{0};
    int64_t mBatch{0};
    int64_t mChanges{0};
};

class ExampleCreator final : public IPluginCreatorV3One
{
public:
    explicit ExampleCreator(char const* name)
        : mName(name)
    {
        mFields = {{"num_dropped", nullptr, PluginFieldType::kINT64, 1},
            {"scale", nullptr, PluginFieldType::kFLOAT32, 1}, {"list", nullptr, PluginFieldType::kINT64, 1}};
        mCollection = {static_cast<int32_t>(mFields.size()), mFields.data()};
    }

    AsciiChar const* getPluginName() const noexcept override
    {
        return mName.c_str();
    }

    AsciiChar const* getPluginVersion() const noexcept override
    {
        return "1";
    }

    AsciiChar const* getPluginNamespace() const noexcept override
    {
        return kNAMESPACE;
    }

    PluginFieldCollection const* getFieldNames() noexcept override
    {
        return &mCollection;
    }

    IPluginV3* createPlugin(
        AsciiChar const*, PluginFieldCollection const* fields, TensorRTPhase phase) noexcept override
    {
        Settings settings;
        int found = 0;
        for (int32_t i = 0; i < fields->nbFields; ++i)
        {
            PluginField const& field = fields->fields[i];
            std::string const name{field.name};
            if (name == "num_dropped" && field.type == PluginFieldType::kINT64)
            {
                std::memcpy(&settings.numDropped, field.data, sizeof(int64_t));
                ++found;
            }
            else if (name == "scale" && field.type == PluginFieldType::kFLOAT32)
            {
                std::memcpy(&settings.scale, field.data, sizeof(float));
                ++found;
            }
            else if (name == "list" && field.type == PluginFieldType::kINT64)
            {
                auto const* values = static_cast<int64_t const*>(field.data);
                settings.list.assign(values, values + field.length);
                ++found;
            }
        }
        bool const fits = found == 3 && settings.numDropped >= 0;
        if (!fits && mName != "TakesAnything")
        {
            if (mName != "RefusesSilently")
            {
                log(mName + ": num_dropped must be 0 or more, and scale and list must be there");
            }
            return nullptr;
        }
        if (mName == "ChangesFields" && phase == TensorRTPhase::kRUNTIME)
        {
            settings.scale += 1.0F;
        }
        return new Example(mName, settings);
    }

private:
    std::string mName;
    std::vector<PluginField> mFields;
    PluginFieldCollection mCollection{};
};

} // namespace

extern "C" __attribute__((visibility("default"))) void setLoggerFinder(ILoggerFinder* finder)
{
    gFinder = finder;
}

extern "C" __attribute__((visibility("default"))) IPluginCreatorInterface* const* getCreators(int32_t& count)
{
    static std::vector<std::unique_ptr<ExampleCreator>> const sOwned = []
    {
        std::vector<std::unique_ptr<ExampleCreator>> made;
        for (char const* name : kNAMES)
        {
            made.push_back(std::make_unique<ExampleCreator>(name));
        }
        return made;
    }();
    static std::vector<IPluginCreatorInterface*> const sCreators = []
    {
        std::vector<IPluginCreatorInterface*> pointers;
        for (auto const& creator : sOwned)
        {
            pointers.push_back(creator.get());
        }
        return pointers;
    }();
    count = static_cast<int32_t>(sCreators.size());
    return sCreators.data();
}
