// Drives the plugins of a library through the life that TensorRT gives them, without TensorRT: only its headers are
// needed. Prints one JSON line for the library and one for each case; a case whose "problems" is empty broke no rule.
//
//   plugin_harness LIBRARY REQUEST [--enqueue FOLDER]
//
// --enqueue also runs the kernels on the inputs named by `data`, between guard bytes, twice, and in a captured CUDA
// graph; then, where data of other sizes are given, on those and on the first again, as shapes change between calls.
// Outputs are written to FOLDER. Built with TRTC_EMULATED_CUDA it does so on the CPU, without the graph.

#include "json.h"
#include "request.h"

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <cstring>
#include <functional>
#include <iostream>

namespace trtc::harness
{
namespace
{

using nvinfer1::Dims;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::IPluginCreatorV3One;
using nvinfer1::IPluginV3;
using nvinfer1::IPluginV3OneBuild;
using nvinfer1::IPluginV3OneBuildV2;
using nvinfer1::IPluginV3OneCore;
using nvinfer1::IPluginV3OneRuntime;
using nvinfer1::PluginField;
using nvinfer1::PluginFieldCollection;
using nvinfer1::PluginFieldType;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;
using nvinfer1::TensorRTPhase;

constexpr size_t kGUARD_BYTES = 256U;
constexpr int kGUARD = 0xa5;
constexpr int kOUTPUT_FILL = 0xcc;
constexpr int kWORKSPACE_FILL = 0xdd;
constexpr int32_t kNUM_FORMATS = 13;
constexpr int64_t kMAX_QUERIES = 2000000;

// ------------------------------------------------------------------------------------------------- what TensorRT has

class Logger final : public nvinfer1::ILogger
{
public:
    void log(Severity severity, nvinfer1::AsciiChar const* message) noexcept override
    {
        if (severity <= Severity::kERROR)
        {
            errors.emplace_back(message == nullptr ? "(null)" : message);
        }
    }

    std::vector<std::string> errors;
};

class LoggerFinder final : public nvinfer1::ILoggerFinder
{
public:
    explicit LoggerFinder(Logger& logger)
        : mLogger(logger)
    {
    }

    nvinfer1::ILogger* findLogger() override
    {
        return &mLogger;
    }

private:
    Logger& mLogger;
};

class ResourceContext final : public nvinfer1::IPluginResourceContext
{
public:
    ResourceContext() = default;
    ~ResourceContext() noexcept override = default;

    nvinfer1::IGpuAllocator* getGpuAllocator() const noexcept override
    {
        return nullptr;
    }

    nvinfer1::IErrorRecorder* getErrorRecorder() const noexcept override
    {
        return nullptr;
    }
};

// ------------------------------------------------------------------------------------------------------------ fields

struct FieldType
{
    PluginFieldType type;
    char const* name;
    size_t bytes;
};

FieldType const& fieldType(PluginFieldType type)
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

Fields fieldsOf(Case const& wanted, PluginFieldCollection const* declared)
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

// ----------------------------------------------------------------------------------------------------- device memory

void must(cudaError_t status, char const* what)
{
    if (status != cudaSuccess)
    {
        throw std::runtime_error(std::string{what} + ": " + cudaGetErrorString(status));
    }
}

class Guarded
{
public:
    explicit Guarded(size_t bytes)
        : mBytes(bytes)
    {
        must(cudaMalloc(&mAll, bytes + 2U * kGUARD_BYTES), "cudaMalloc");
        must(cudaMemset(mAll, kGUARD, bytes + 2U * kGUARD_BYTES), "cudaMemset");
    }

    ~Guarded()
    {
        cudaFree(mAll);
    }

    Guarded(Guarded const&) = delete;
    Guarded& operator=(Guarded const&) = delete;

    void* data() const
    {
        return static_cast<unsigned char*>(mAll) + kGUARD_BYTES;
    }

    void fill(int value)
    {
        if (mBytes > 0U)
        {
            must(cudaMemset(data(), value, mBytes), "cudaMemset");
        }
    }

    void upload(std::vector<unsigned char> const& bytes)
    {
        if (mBytes > 0U)
        {
            must(cudaMemcpy(data(), bytes.data(), mBytes, cudaMemcpyHostToDevice), "cudaMemcpy");
        }
    }

    std::vector<unsigned char> download() const
    {
        std::vector<unsigned char> bytes(mBytes);
        if (mBytes > 0U)
        {
            must(cudaMemcpy(bytes.data(), data(), mBytes, cudaMemcpyDeviceToHost), "cudaMemcpy");
        }
        return bytes;
    }

    bool guardsAreWhole() const
    {
        std::vector<unsigned char> all(mBytes + 2U * kGUARD_BYTES);
        must(cudaMemcpy(all.data(), mAll, all.size(), cudaMemcpyDeviceToHost), "cudaMemcpy");
        auto const isGuard = [](unsigned char byte) { return byte == kGUARD; };
        return std::all_of(all.begin(), all.begin() + kGUARD_BYTES, isGuard)
            && std::all_of(all.end() - kGUARD_BYTES, all.end(), isGuard);
    }

private:
    size_t mBytes;
    void* mAll{nullptr};
};

// ------------------------------------------------------------------------------------------------------ descriptions

Dims dimsOf(std::vector<int64_t> const& sizes)
{
    Dims dims{};
    dims.nbDims = static_cast<int32_t>(sizes.size());
    std::copy(sizes.begin(), sizes.end(), dims.d);
    return dims;
}

std::vector<int64_t> sizesOf(Tensor const& tensor, Sizes const& binding)
{
    std::vector<int64_t> sizes;
    for (auto const& dim : tensor.dims)
    {
        sizes.push_back(dim.axis.empty() ? dim.value : binding.at(dim.axis));
    }
    return sizes;
}

int64_t volumeOf(std::vector<int64_t> const& sizes)
{
    int64_t volume = 1;
    for (int64_t size : sizes)
    {
        volume *= size;
    }
    return volume;
}

PluginTensorDesc describe(DataType type, std::vector<int64_t> const& sizes)
{
    return {dimsOf(sizes), type, TensorFormat::kLINEAR, 1.0F};
}

// One plugin on its way through the case. Steps note what broke a rule and write what Python compares with SPEC.
class Life
{
public:
    Life(Case const& wanted, IPluginCreatorV3One& creator, Logger& logger, Json& json, Problems& problems)
        : mCase(wanted)
        , mCreator(creator)
        , mLogger(logger)
        , mJson(json)
        , mProblems(problems)
    {
    }

    void refuse()
    {
        Fields fields = fieldsOf(mCase, mCreator.getFieldNames());
        mLogger.errors.clear();
        std::unique_ptr<IPluginV3> const plugin{
            mCreator.createPlugin(mCase.label.c_str(), fields.collection(), TensorRTPhase::kBUILD)};
        note(plugin == nullptr, "the creator took fields that it must refuse");
        note(!mLogger.errors.empty(), "nothing was logged for fields that were refused");
    }

    void run(std::string const& folder)
    {
        Fields fields = fieldsOf(mCase, mCreator.getFieldNames());
        mLogger.errors.clear();
        std::unique_ptr<IPluginV3> plugin{
            mCreator.createPlugin(mCase.label.c_str(), fields.collection(), TensorRTPhase::kBUILD)};
        if (!note(plugin != nullptr, "the creator gave no plugin"))
        {
            return;
        }
        checkCore(*plugin);
        if (!build(*plugin))
        {
            return;
        }
        std::unique_ptr<IPluginV3> copy{plugin->clone()};
        if (!note(copy != nullptr, "clone() gave no plugin"))
        {
            return;
        }
        Fields const serialized = serialize(*plugin);
        note(serialize(*copy) == serialized, "a clone serializes other fields");
        // A clone stands on its own.
        plugin.reset();
        note(serialize(*copy) == serialized, "a clone changed when the plugin it came from was destroyed");
        Expressions again{mNbOutputs, mProblems};
        note(evaluate(*buildOf(*copy), again, true).shapes == mShapes.shapes, "a clone computes other shapes");
        copy.reset();

        mJson.key("serialized");
        serialized.write(mJson);
        Fields stored = serialized;
        std::unique_ptr<IPluginV3> engine{
            mCreator.createPlugin(mCase.label.c_str(), stored.collection(), TensorRTPhase::kRUNTIME)};
        if (!note(engine != nullptr, "the creator does not take its own serialized fields"))
        {
            return;
        }
        checkCore(*engine);
        note(serialize(*engine) == serialized, "the fields change when they are serialized again");
        ResourceContext context;
        auto* const runtime = runtimeOf(*engine);
        if (!note(runtime != nullptr, "no runtime capability"))
        {
            return;
        }
        std::unique_ptr<IPluginV3> attached{runtime->attachToContext(&context)};
        if (!note(attached != nullptr && attached.get() != engine.get(), "attachToContext() gave no plugin of its own"))
        {
            static_cast<void>(attached.release());
            return;
        }
        std::unique_ptr<IPluginV3> second{runtime->attachToContext(&context)};
        note(second != nullptr && second.get() != attached.get(), "a second context got no plugin of its own");
        second.reset();
        // TensorRT may let go of the engine's plugin first.
        engine.reset();
        note(serialize(*attached) == serialized, "an attached plugin serializes other fields");
        start(*attached, folder);
    }

private:
    struct Shapes
    {
        // For each binding, for each output.
        std::vector<std::vector<std::vector<int64_t>>> shapes;
        std::vector<std::vector<Expression const*>> expressions;
    };

    bool note(bool fine, std::string const& problem)
    {
        if (!fine)
        {
            mProblems.push_back(problem);
        }
        return fine;
    }

    static IPluginV3OneBuild* buildOf(IPluginV3& plugin)
    {
        return static_cast<IPluginV3OneBuild*>(plugin.getCapabilityInterface(nvinfer1::PluginCapabilityType::kBUILD));
    }

    static IPluginV3OneRuntime* runtimeOf(IPluginV3& plugin)
    {
        return static_cast<IPluginV3OneRuntime*>(
            plugin.getCapabilityInterface(nvinfer1::PluginCapabilityType::kRUNTIME));
    }

    Fields serialize(IPluginV3& plugin)
    {
        auto* const runtime = runtimeOf(plugin);
        PluginFieldCollection const* const fields = runtime == nullptr ? nullptr : runtime->getFieldsToSerialize();
        note(fields != nullptr, "getFieldsToSerialize() gave nothing");
        return Fields{fields};
    }

    void checkCore(IPluginV3& plugin)
    {
        auto* const core =
            static_cast<IPluginV3OneCore*>(plugin.getCapabilityInterface(nvinfer1::PluginCapabilityType::kCORE));
        if (note(core != nullptr, "no core capability"))
        {
            note(core->getPluginName() == mCase.type, std::string{"the plugin is called "} + core->getPluginName());
            note(core->getPluginVersion() == mCase.version,
                std::string{"the plugin has version "} + core->getPluginVersion());
            note(core->getPluginNamespace() == mCase.space,
                std::string{"the plugin has namespace "} + core->getPluginNamespace());
        }
    }

    int32_t nbInputs() const
    {
        return static_cast<int32_t>(mCase.inputs.size());
    }

    // Shapes of the outputs; with `symbolic` the axes that are not known when building are symbols, else numbers.
    Shapes evaluate(IPluginV3OneBuild& build, Expressions& expressions, bool symbolic)
    {
        Shapes found;
        std::vector<Sizes> const bindings = symbolic ? mCase.bindings : std::vector<Sizes>{mCase.bindings[0]};
        std::vector<nvinfer1::DimsExprs> inputs;
        for (auto const& tensor : mCase.inputs)
        {
            nvinfer1::DimsExprs dims{};
            dims.nbDims = static_cast<int32_t>(tensor.dims.size());
            for (size_t d = 0; d < tensor.dims.size(); ++d)
            {
                auto const& dim = tensor.dims[d];
                dims.d[d] =
                    dim.axis.empty() || !symbolic ? expressions.constant(dim.value) : expressions.symbol(dim.axis);
            }
            inputs.push_back(dims);
        }
        std::vector<nvinfer1::DimsExprs> outputs(static_cast<size_t>(mNbOutputs));
        for (auto& output : outputs)
        {
            output.nbDims = -7;
        }
        int32_t const status =
            build.getOutputShapes(inputs.data(), nbInputs(), nullptr, 0, outputs.data(), mNbOutputs, expressions);
        if (!note(status == 0, "getOutputShapes() failed"))
        {
            return found;
        }
        for (auto const& output : outputs)
        {
            std::vector<Expression const*> dims;
            bool known = output.nbDims >= 0 && output.nbDims <= nvinfer1::Dims::MAX_DIMS;
            for (int32_t d = 0; known && d < output.nbDims; ++d)
            {
                dims.push_back(expressions.find(output.d[d]));
                known = dims.back() != nullptr;
            }
            if (!note(known, "getOutputShapes() left an output without dimensions"))
            {
                return found;
            }
            found.expressions.push_back(dims);
        }
        for (auto const& binding : bindings)
        {
            std::vector<std::vector<int64_t>> shapes;
            for (auto const& dims : found.expressions)
            {
                std::vector<int64_t> sizes;
                for (auto const* dim : dims)
                {
                    sizes.push_back(dim->evaluate(binding));
                    if (!note(sizes.back() >= 0 && sizes.back() <= INT32_MAX,
                            "an output has a dimension of " + std::to_string(sizes.back())))
                    {
                        return {};
                    }
                }
                shapes.push_back(sizes);
            }
            found.shapes.push_back(shapes);
        }
        return found;
    }

    DynamicPluginTensorDesc dynamicDesc(
        DataType type, std::vector<bool> const& isDynamic, std::vector<std::vector<int64_t>> const& sizes) const
    {
        std::vector<int64_t> known = sizes[0];
        std::vector<int64_t> low = sizes[0];
        std::vector<int64_t> high = sizes[0];
        for (size_t d = 0; d < known.size(); ++d)
        {
            known[d] = isDynamic[d] ? -1 : known[d];
            for (auto const& other : sizes)
            {
                low[d] = std::min(low[d], other[d]);
                high[d] = std::max(high[d], other[d]);
            }
        }
        return {describe(type, known), dimsOf(low), dimsOf(high), dimsOf(sizes[0])};
    }

    std::vector<DynamicPluginTensorDesc> inputDescs() const
    {
        std::vector<DynamicPluginTensorDesc> descs;
        for (auto const& tensor : mCase.inputs)
        {
            std::vector<bool> isDynamic;
            for (auto const& dim : tensor.dims)
            {
                isDynamic.push_back(!dim.axis.empty());
            }
            std::vector<std::vector<int64_t>> sizes;
            for (auto const& binding : mCase.bindings)
            {
                sizes.push_back(sizesOf(tensor, binding));
            }
            descs.push_back(dynamicDesc(tensor.type, isDynamic, sizes));
        }
        return descs;
    }

    std::vector<DynamicPluginTensorDesc> outputDescs() const
    {
        std::vector<DynamicPluginTensorDesc> descs;
        for (size_t o = 0; o < mOutputTypes.size(); ++o)
        {
            std::vector<bool> isDynamic;
            for (auto const* dim : mShapes.expressions[o])
            {
                isDynamic.push_back(!dim->isConstant());
            }
            std::vector<std::vector<int64_t>> sizes;
            for (auto const& shapes : mShapes.shapes)
            {
                sizes.push_back(shapes[o]);
            }
            descs.push_back(dynamicDesc(mOutputTypes[o], isDynamic, sizes));
        }
        return descs;
    }

    bool build(IPluginV3& plugin)
    {
        auto* const build = buildOf(plugin);
        if (!note(build != nullptr, "no build capability"))
        {
            return false;
        }
        mNbOutputs = build->getNbOutputs();
        mJson.key("num_outputs").number(mNbOutputs);
        if (!note(mNbOutputs > 0 && mNbOutputs < 16, "an impossible number of outputs"))
        {
            return false;
        }
        std::vector<DataType> inputTypes;
        for (auto const& tensor : mCase.inputs)
        {
            inputTypes.push_back(tensor.type);
        }
        mOutputTypes.assign(static_cast<size_t>(mNbOutputs), static_cast<DataType>(-1));
        int32_t const status =
            build->getOutputDataTypes(mOutputTypes.data(), mNbOutputs, inputTypes.data(), nbInputs());
        if (!note(status == 0, "getOutputDataTypes() failed"))
        {
            return false;
        }
        mJson.key("output_types").begin('[');
        for (DataType type : mOutputTypes)
        {
            mJson.text(nameOf(type));
            note(type != DataType::kBOOL && type != DataType::kUINT8, "a plugin's output cannot be BOOL or UINT8");
        }
        mJson.end(']');

        mExpressions = std::make_unique<Expressions>(mNbOutputs, mProblems);
        mShapes = evaluate(*build, *mExpressions, true);
        if (mShapes.shapes.empty())
        {
            return false;
        }
        Expressions constants{mNbOutputs, mProblems};
        Shapes const fixed = evaluate(*build, constants, false);
        note(!fixed.shapes.empty() && fixed.shapes[0] == mShapes.shapes[0],
            "shapes differ between known and unknown sizes");
        mJson.key("output_shapes").begin('[');
        for (auto const& shapes : mShapes.shapes)
        {
            mJson.begin('[');
            for (auto const& shape : shapes)
            {
                mJson.numbers(shape);
            }
            mJson.end(']');
        }
        mJson.end(']').key("size_tensors").numbers(mExpressions->sizeTensors());
        for (int32_t index : mExpressions->sizeTensors())
        {
            auto const o = static_cast<size_t>(index);
            note(mOutputTypes[o] == DataType::kINT32 && mShapes.expressions[o].empty(),
                "size tensor " + std::to_string(index) + " is not an INT32 without dimensions");
        }

        checkFormats(*build);
        checkWrongCounts(*build, inputTypes);
        auto const inputs = inputDescs();
        auto const outputs = outputDescs();
        // TensorRT configures for every combination of types it tries, so more than once.
        for (int i = 0; i < 2; ++i)
        {
            note(build->configurePlugin(inputs.data(), nbInputs(), outputs.data(), mNbOutputs) == 0,
                "configurePlugin() failed");
        }
        checkTactics(*build);
        mWorkspaceBytes = build->getWorkspaceSize(inputs.data(), nbInputs(), outputs.data(), mNbOutputs);
        mJson.key("workspace_bytes").number(static_cast<int64_t>(mWorkspaceBytes));
        char const* const timing = build->getTimingCacheID();
        mJson.key("timing_cache_id");
        timing == nullptr ? mJson.null() : mJson.text(timing);

        auto const info = build->getInterfaceInfo();
        mJson.key("build_interface").number(info.major).key("aliases").begin('[');
        mAliases.assign(static_cast<size_t>(mNbOutputs), -1);
        for (int32_t o = 0; o < mNbOutputs; ++o)
        {
            // Only the second version of the interface has the question.
            if (info.major >= 2)
            {
                mAliases[static_cast<size_t>(o)] = static_cast<IPluginV3OneBuildV2*>(build)->getAliasedInput(o);
            }
            int32_t const alias = mAliases[static_cast<size_t>(o)];
            mJson.number(alias);
            bool fits = alias == -1;
            if (alias >= 0 && alias < nbInputs())
            {
                auto const& input = mCase.inputs[static_cast<size_t>(alias)];
                fits = input.type == mOutputTypes[static_cast<size_t>(o)]
                    && sizesOf(input, mCase.bindings[0]) == mShapes.shapes[0][static_cast<size_t>(o)];
            }
            note(fits, "output " + std::to_string(o) + " is aliased with something of another shape or type");
        }
        mJson.end(']');
        return true;
    }

    // Everything after `pos` is made up: a plugin may look at what is before only.
    static void scramble(std::vector<DynamicPluginTensorDesc>& descs, size_t from, size_t salt)
    {
        for (size_t i = from; i < descs.size(); ++i)
        {
            auto const& types = typeNames();
            descs[i].desc.type = types[(i * 5U + salt) % types.size()].type;
            descs[i].desc.format = static_cast<TensorFormat>((i * 3U + salt) % kNUM_FORMATS);
        }
    }

    void checkFormats(IPluginV3OneBuild& build)
    {
        auto descs = inputDescs();
        auto const outputs = outputDescs();
        descs.insert(descs.end(), outputs.begin(), outputs.end());
        std::vector<std::vector<std::string>> accepted;
        int64_t queries = 0;
        bool looksAhead = false;
        bool otherFormats = false;
        std::function<void(size_t)> const go = [&](size_t pos)
        {
            if (pos == descs.size())
            {
                std::vector<std::string> names;
                for (auto const& desc : descs)
                {
                    names.push_back(nameOf(desc.desc.type));
                    otherFormats = otherFormats || desc.desc.format != TensorFormat::kLINEAR;
                }
                accepted.push_back(names);
                return;
            }
            for (auto const& type : typeNames())
            {
                for (int32_t format = 0; format < kNUM_FORMATS && queries < kMAX_QUERIES; ++format)
                {
                    bool isAccepted = false;
                    // Looking ahead shows with the one format that plugins take.
                    size_t const numSalts =
                        static_cast<TensorFormat>(format) == TensorFormat::kLINEAR ? typeNames().size() : 1U;
                    for (size_t salt = 0; salt < numSalts; ++salt)
                    {
                        scramble(descs, pos + 1U, salt);
                        descs[pos].desc.type = type.type;
                        descs[pos].desc.format = static_cast<TensorFormat>(format);
                        ++queries;
                        bool const answer = build.supportsFormatCombination(
                            static_cast<int32_t>(pos), descs.data(), nbInputs(), mNbOutputs);
                        looksAhead = looksAhead || (salt > 0U && answer != isAccepted);
                        isAccepted = answer;
                    }
                    if (isAccepted)
                    {
                        go(pos + 1U);
                    }
                }
            }
        };
        go(0U);
        note(queries < kMAX_QUERIES, "too many format combinations to try");
        note(!looksAhead, "supportsFormatCombination() looks at tensors after pos");
        note(!otherFormats, "a format other than linear is accepted");
        note(static_cast<int64_t>(accepted.size()) <= build.getFormatCombinationLimit(),
            "more format combinations are accepted than getFormatCombinationLimit() says");
        mJson.key("format_combinations").begin('[');
        for (auto const& names : accepted)
        {
            mJson.texts(names);
        }
        mJson.end(']');
    }

    void checkWrongCounts(IPluginV3OneBuild& build, std::vector<DataType> const& inputTypes)
    {
        // What is logged here is as it should be.
        std::vector<std::string> const before = mLogger.errors;
        std::vector<DataType> types(static_cast<size_t>(mNbOutputs));
        note(build.getOutputDataTypes(types.data(), mNbOutputs, inputTypes.data(), nbInputs() - 1) != 0,
            "getOutputDataTypes() takes too few inputs");
        Expressions expressions{mNbOutputs, mProblems};
        std::vector<nvinfer1::DimsExprs> inputs(mCase.inputs.size());
        std::vector<nvinfer1::DimsExprs> outputs(static_cast<size_t>(mNbOutputs));
        for (auto& input : inputs)
        {
            input.nbDims = 1;
            input.d[0] = expressions.constant(4);
        }
        note(build.getOutputShapes(inputs.data(), nbInputs() - 1, nullptr, 0, outputs.data(), mNbOutputs, expressions)
                != 0,
            "getOutputShapes() takes too few inputs");
        note(build.getOutputShapes(inputs.data(), nbInputs(), nullptr, 0, outputs.data(), mNbOutputs, expressions) != 0
                || takesVectors(),
            "getOutputShapes() takes inputs of the wrong rank");
        mLogger.errors = before;
    }

    bool takesVectors() const
    {
        return std::all_of(
            mCase.inputs.begin(), mCase.inputs.end(), [](Tensor const& t) { return t.dims.size() == 1U; });
    }

    void checkTactics(IPluginV3OneBuild& build)
    {
        int32_t const count = build.getNbTactics();
        mTactics.assign(static_cast<size_t>(std::max(count, 0)), 0);
        note(count >= 0, "a negative number of tactics");
        if (count > 0)
        {
            note(build.getValidTactics(mTactics.data(), count) == 0, "getValidTactics() failed");
        }
        std::set<int32_t> const unique{mTactics.begin(), mTactics.end()};
        note(unique.size() == mTactics.size() && unique.count(0) == 0U, "tactics must be unique and not zero");
        mJson.key("tactics").numbers(mTactics);
    }

    std::vector<PluginTensorDesc> inputsAt(Sizes const& binding) const
    {
        std::vector<PluginTensorDesc> descs;
        for (auto const& tensor : mCase.inputs)
        {
            descs.push_back(describe(tensor.type, sizesOf(tensor, binding)));
        }
        return descs;
    }

    std::vector<PluginTensorDesc> outputsAt(size_t binding) const
    {
        std::vector<PluginTensorDesc> descs;
        for (size_t o = 0; o < mOutputTypes.size(); ++o)
        {
            descs.push_back(describe(mOutputTypes[o], mShapes.shapes[binding][o]));
        }
        return descs;
    }

    void start(IPluginV3& plugin, std::string const& folder)
    {
        auto* const runtime = runtimeOf(plugin);
        std::vector<int32_t> const tactics = mTactics.empty() ? std::vector<int32_t>{0} : mTactics;
        for (size_t t = 0; t < tactics.size(); ++t)
        {
            // Tactic 0 means that the plugin has none.
            note(runtime->setTactic(tactics[t]) == 0, "setTactic() failed");
            // The first binding last, so that it is the one that runs.
            for (size_t b = mCase.bindings.size(); b-- > 0U;)
            {
                auto const inputs = inputsAt(mCase.bindings[b]);
                auto const outputs = outputsAt(b);
                note(runtime->onShapeChange(inputs.data(), nbInputs(), outputs.data(), mNbOutputs) == 0,
                    "onShapeChange() failed");
            }
            if (!folder.empty())
            {
                Result const result =
                    enqueue(*runtime, folder + (t == 0U ? "" : "/tactic" + std::to_string(tactics[t])), t == 0U);
                changeShapes(*runtime, tactics[t], result);
            }
        }
    }

    struct Result
    {
        int32_t status{0};
        std::vector<std::vector<unsigned char>> outputs;
    };

    // One run on fresh memory. `alias`: outputs that may be are written into their inputs.
    Result runOnce(IPluginV3OneRuntime& runtime, std::vector<std::vector<unsigned char>> const& data, bool alias,
        bool inGraph, std::string const& name, size_t binding = 0U)
    {
        auto const inputs = inputsAt(mCase.bindings[binding]);
        auto const outputs = outputsAt(binding);
        std::vector<std::unique_ptr<Guarded>> inputMemory;
        std::vector<std::unique_ptr<Guarded>> outputMemory;
        std::vector<void const*> inputPointers;
        std::vector<void*> outputPointers;
        for (auto const& bytes : data)
        {
            inputMemory.push_back(std::make_unique<Guarded>(bytes.size()));
            inputPointers.push_back(inputMemory.back()->data());
        }
        for (size_t o = 0; o < outputs.size(); ++o)
        {
            outputMemory.push_back(std::make_unique<Guarded>(
                static_cast<size_t>(volumeOf(mShapes.shapes[binding][o]) * bytesOf(mOutputTypes[o]))));
            bool const inPlace = alias && mAliases[o] >= 0;
            outputPointers.push_back(
                inPlace ? inputMemory[static_cast<size_t>(mAliases[o])]->data() : outputMemory.back()->data());
        }
        Guarded workspace{mWorkspaceBytes};
        auto const refill = [&]
        {
            for (size_t i = 0; i < data.size(); ++i)
            {
                inputMemory[i]->upload(data[i]);
            }
            for (auto& memory : outputMemory)
            {
                memory->fill(kOUTPUT_FILL);
            }
            workspace.fill(kWORKSPACE_FILL);
            must(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
        };
        cudaStream_t stream{};
        must(cudaStreamCreate(&stream), "cudaStreamCreate");
        Result result;
        refill();
        auto const call = [&]
        {
            return runtime.enqueue(
                inputs.data(), outputs.data(), inputPointers.data(), outputPointers.data(), workspace.data(), stream);
        };
        if (inGraph)
        {
#ifndef TRTC_EMULATED_CUDA
            cudaGraph_t graph{};
            cudaGraphExec_t executable{};
            must(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
            result.status = call();
            must(cudaStreamEndCapture(stream, &graph), "cudaStreamEndCapture");
            must(cudaGraphInstantiate(&executable, graph, 0), "cudaGraphInstantiate");
            for (int launch = 0; launch < 2; ++launch)
            {
                refill();
                must(cudaGraphLaunch(executable, stream), "cudaGraphLaunch");
                must(cudaStreamSynchronize(stream), "cudaStreamSynchronize");
            }
            must(cudaGraphExecDestroy(executable), "cudaGraphExecDestroy");
            must(cudaGraphDestroy(graph), "cudaGraphDestroy");
#endif
        }
        else
        {
            result.status = call();
        }
        cudaError_t const finished = cudaStreamSynchronize(stream);
        note(finished == cudaSuccess, name + ": " + cudaGetErrorString(finished));
        note(cudaGetLastError() == cudaSuccess, name + " left an error behind for cudaGetLastError()");
        must(cudaStreamDestroy(stream), "cudaStreamDestroy");
        for (size_t i = 0; i < data.size(); ++i)
        {
            bool const written =
                alias && std::find(mAliases.begin(), mAliases.end(), static_cast<int32_t>(i)) != mAliases.end();
            note(inputMemory[i]->guardsAreWhole(), name + " wrote beyond input " + mCase.inputs[i].name);
            note(written || inputMemory[i]->download() == data[i], name + " wrote into input " + mCase.inputs[i].name);
        }
        for (size_t o = 0; o < outputs.size(); ++o)
        {
            bool const inPlace = alias && mAliases[o] >= 0;
            note(outputMemory[o]->guardsAreWhole(), name + " wrote beyond output " + std::to_string(o));
            result.outputs.push_back(
                (inPlace ? inputMemory[static_cast<size_t>(mAliases[o])] : outputMemory[o])->download());
        }
        note(workspace.guardsAreWhole(), name + " wrote beyond its workspace");
        return result;
    }

    bool read(size_t binding, std::vector<std::vector<unsigned char>>& data)
    {
        for (auto const& tensor : mCase.inputs)
        {
            auto const path = mCase.data[binding].find(tensor.name);
            std::ifstream file{path == mCase.data[binding].end() ? "" : path->second, std::ios::binary};
            data.emplace_back(std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>());
            auto const wanted =
                static_cast<size_t>(volumeOf(sizesOf(tensor, mCase.bindings[binding])) * bytesOf(tensor.type));
            if (!note(data.back().size() == wanted, "no data of the right size for input " + tensor.name))
            {
                return false;
            }
        }
        return true;
    }

    bool changeTo(IPluginV3OneRuntime& runtime, size_t binding)
    {
        auto const inputs = inputsAt(mCase.bindings[binding]);
        auto const outputs = outputsAt(binding);
        return note(runtime.onShapeChange(inputs.data(), nbInputs(), outputs.data(), mNbOutputs) == 0,
            "onShapeChange() failed");
    }

    // Other sizes, and the first ones after them, must give what a plugin gives that knows no other sizes.
    void changeShapes(IPluginV3OneRuntime& runtime, int32_t tactic, Result const& first)
    {
        size_t changes = 0U;
        for (size_t b = 1U; b < mCase.bindings.size(); ++b)
        {
            std::vector<std::vector<unsigned char>> data;
            if (mCase.data[b].empty() || !read(b, data))
            {
                continue;
            }
            ResourceContext context;
            std::unique_ptr<IPluginV3> const fresh{runtime.attachToContext(&context)};
            if (!note(fresh != nullptr, "a further context got no plugin"))
            {
                return;
            }
            auto* const alone = runtimeOf(*fresh);
            note(alone->setTactic(tactic) == 0, "setTactic() failed");
            if (!changeTo(*alone, b) || !changeTo(runtime, b))
            {
                return;
            }
            Result const wanted = runOnce(*alone, data, true, false, "enqueue of other sizes by a new plugin", b);
            Result const found = runOnce(runtime, data, true, false, "enqueue after a change of shapes", b);
            note(wanted.status == 0 && found.status == 0, "enqueue() fails after a change of shapes");
            note(found.outputs == wanted.outputs, "a change of shapes gives other bits than a new plugin");
            ++changes;
        }
        std::vector<std::vector<unsigned char>> data;
        if (changes > 0U && changeTo(runtime, 0U) && read(0U, data))
        {
            Result const again = runOnce(runtime, data, true, false, "enqueue after shapes changed back");
            note(again.outputs == first.outputs, "shapes that changed back give other bits");
        }
        mJson.key("changes").number(static_cast<int64_t>(changes));
    }

    Result enqueue(IPluginV3OneRuntime& runtime, std::string const& folder, bool first)
    {
        std::vector<std::vector<unsigned char>> data;
        if (!read(0U, data))
        {
            return {};
        }
        Result const result = runOnce(runtime, data, true, false, "enqueue");
        note(result.status == 0, "enqueue() returned " + std::to_string(result.status));
        Result const again = runOnce(runtime, data, true, false, "the second enqueue");
        note(again.outputs == result.outputs, "a second run gives other bits");
        if (std::any_of(mAliases.begin(), mAliases.end(), [](int32_t alias) { return alias >= 0; }))
        {
            Result const apart = runOnce(runtime, data, false, false, "enqueue with an output of its own");
            note(apart.status == 0 && apart.outputs == result.outputs, "in place and copied outputs differ");
        }
        bool const captured = mExpressions->sizeTensors().empty();
#ifdef TRTC_EMULATED_CUDA
        std::string const graph = "skipped: CUDA is emulated";
#else
        std::string const graph = captured ? "ran" : "skipped: a size depends on the data";
        if (captured)
        {
            Result const replayed = runOnce(runtime, data, true, true, "enqueue in a captured graph");
            note(replayed.status == 0 && replayed.outputs == result.outputs, "a captured graph gives other bits");
        }
#endif
        static_cast<void>(captured);
        Measured measured;
        for (int32_t index : mExpressions->sizeTensors())
        {
            int32_t value = 0;
            std::memcpy(&value, result.outputs[static_cast<size_t>(index)].data(), sizeof(value));
            measured[index] = value;
        }
        if (first)
        {
            mJson.key("graph").text(graph).key("outputs").begin('[');
        }
        for (size_t o = 0; o < result.outputs.size(); ++o)
        {
            std::vector<int64_t> sizes;
            for (auto const* dim : mShapes.expressions[o])
            {
                sizes.push_back(dim->evaluate(mCase.bindings[0], measured));
            }
            auto const bytes = static_cast<size_t>(volumeOf(sizes) * bytesOf(mOutputTypes[o]));
            if (!note(bytes <= result.outputs[o].size(), "a measured size is above its upper bound"))
            {
                continue;
            }
            std::string const path = folder + "/" + mCase.label + "." + std::to_string(o);
            std::ofstream file{path, std::ios::binary};
            file.write(reinterpret_cast<char const*>(result.outputs[o].data()), static_cast<std::streamsize>(bytes));
            if (first)
            {
                mJson.begin('{').key("path").text(path).key("shape").numbers(sizes).end('}');
            }
        }
        if (first)
        {
            mJson.end(']');
        }
        return result;
    }

    Case const& mCase;
    IPluginCreatorV3One& mCreator;
    Logger& mLogger;
    Json& mJson;
    Problems& mProblems;
    int32_t mNbOutputs{0};
    std::vector<DataType> mOutputTypes;
    std::unique_ptr<Expressions> mExpressions;
    Shapes mShapes;
    std::vector<int32_t> mTactics;
    std::vector<int32_t> mAliases;
    size_t mWorkspaceBytes{0U};
};

// ----------------------------------------------------------------------------------------------------------- library

using SetLoggerFinder = void (*)(nvinfer1::ILoggerFinder*);
using GetCreators = nvinfer1::IPluginCreatorInterface* const* (*)(int32_t&);

class Library
{
public:
    Library(char const* path, LoggerFinder& finder)
        : mHandle(dlopen(path, RTLD_NOW | RTLD_LOCAL))
    {
        if (mHandle == nullptr)
        {
            throw std::runtime_error(dlerror());
        }
        auto const setFinder = reinterpret_cast<SetLoggerFinder>(dlsym(mHandle, "setLoggerFinder"));
        auto const getCreators = reinterpret_cast<GetCreators>(dlsym(mHandle, "getCreators"));
        if (setFinder == nullptr || getCreators == nullptr)
        {
            throw std::runtime_error(std::string{path} + " exports no setLoggerFinder or no getCreators");
        }
        setFinder(&finder);
        int32_t count = 0;
        auto* const creators = getCreators(count);
        for (int32_t i = 0; i < count; ++i)
        {
            auto const info = creators[i]->getInterfaceInfo();
            if (std::string{info.kind} != "PLUGIN CREATOR_V3ONE")
            {
                throw std::runtime_error(std::string{"a creator is of kind "} + info.kind);
            }
            mCreators.push_back(static_cast<IPluginCreatorV3One*>(creators[i]));
        }
    }

    ~Library()
    {
        dlclose(mHandle);
    }

    Library(Library const&) = delete;
    Library& operator=(Library const&) = delete;

    IPluginCreatorV3One* find(Case const& wanted) const
    {
        for (auto* creator : mCreators)
        {
            if (creator->getPluginName() == wanted.type && creator->getPluginVersion() == wanted.version
                && creator->getPluginNamespace() == wanted.space)
            {
                return creator;
            }
        }
        return nullptr;
    }

    void write(Json& json) const
    {
        json.begin('{')
            .key("tensorrt")
            .text(std::to_string(NV_TENSORRT_MAJOR) + "." + std::to_string(NV_TENSORRT_MINOR));
        json.key("creators").begin('[');
        for (auto* creator : mCreators)
        {
            json.begin('{').key("name").text(creator->getPluginName()).key("version").text(creator->getPluginVersion());
            json.key("namespace").text(creator->getPluginNamespace()).key("fields");
            Fields{creator->getFieldNames()}.write(json);
            json.end('}');
        }
        json.end(']').end('}');
    }

private:
    void* mHandle;
    std::vector<IPluginCreatorV3One*> mCreators;
};

int runAll(char const* libraryPath, char const* requestPath, std::string const& folder)
{
    Logger logger;
    LoggerFinder finder{logger};
    Library const library{libraryPath, finder};
    Json about;
    library.write(about);
    std::cout << about.str() << std::endl;
    readRequest(requestPath,
        [&](Case const& wanted)
        {
            Json json;
            Problems problems;
            json.begin('{').key("case").text(wanted.label);
            logger.errors.clear();
            IPluginCreatorV3One* const creator = library.find(wanted);
            if (creator == nullptr)
            {
                problems.push_back("no creator " + wanted.type + " " + wanted.version + " " + wanted.space);
            }
            else
            {
                Life life{wanted, *creator, logger, json, problems};
                wanted.refuse ? life.refuse() : life.run(folder);
            }
            json.key("errors").texts(logger.errors);
            json.key("problems").texts(std::set<std::string>{problems.begin(), problems.end()}).end('}');
            std::cout << json.str() << std::endl;
        });
    return 0;
}

} // namespace
} // namespace trtc::harness

int main(int argc, char** argv)
{
    bool const enqueue = argc == 5 && std::strcmp(argv[3], "--enqueue") == 0;
    if (argc != 3 && !enqueue)
    {
        std::cerr << "usage: plugin_harness LIBRARY REQUEST [--enqueue FOLDER]\n";
        return 2;
    }
    try
    {
        return trtc::harness::runAll(argv[1], argv[2], enqueue ? argv[4] : "");
    }
    catch (std::exception const& error)
    {
        std::cerr << error.what() << "\n";
        return 1;
    }
}
