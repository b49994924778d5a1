// What the plugins and their harness use of TensorRT's plugin interface (version 10.3), for machines that do not have
// its headers: names, numbers and signatures as TensorRT documents them, laid out in memory as there, which a test
// compares where the real ones are (tests/native/test_plugin_layout.py). No library that is built with it is ever kept.
#pragma once

#include <cstddef>
#include <cstdint>

#include <cuda_runtime_api.h>

#define NV_TENSORRT_MAJOR 10
#define NV_TENSORRT_MINOR 3

namespace nvinfer1
{

using AsciiChar = char;
using InterfaceKind = char const*;

class IGpuAllocator;
class IErrorRecorder;

enum class DataType : int32_t
{
    kFLOAT,
    kHALF,
    kINT8,
    kINT32,
    kBOOL,
    kUINT8,
    kFP8,
    kBF16,
    kINT64,
    kINT4,
};

enum class TensorFormat : int32_t
{
    kLINEAR, // of thirteen
};

enum class DimensionOperation : int32_t
{
    kSUM,
    kPROD,
    kMAX,
    kMIN,
    kSUB,
    kEQUAL,
    kLESS,
    kFLOOR_DIV,
    kCEIL_DIV,
};

enum class PluginFieldType : int32_t
{
    kFLOAT16,
    kFLOAT32,
    kFLOAT64,
    kINT8,
    kINT16,
    kINT32,
    kCHAR,
    kDIMS,
    kUNKNOWN,
    kBF16,
    kINT64,
    kFP8,
    kINT4,
};

enum class PluginCapabilityType : int32_t
{
    kCORE,
    kBUILD,
    kRUNTIME,
};

enum class TensorRTPhase : int32_t
{
    kBUILD,
    kRUNTIME,
};

struct Dims
{
    static constexpr int32_t MAX_DIMS{8};
    int32_t nbDims;
    int64_t d[MAX_DIMS];
};

struct PluginTensorDesc
{
    Dims dims;
    DataType type;
    TensorFormat format;
    float scale;
};

struct DynamicPluginTensorDesc
{
    PluginTensorDesc desc;
    Dims min;
    Dims max;
    Dims opt;
};

struct PluginField
{
    AsciiChar const* name;
    void const* data;
    PluginFieldType type;
    int32_t length;

    PluginField(AsciiChar const* theName = nullptr, void const* theData = nullptr,
        PluginFieldType theType = PluginFieldType::kUNKNOWN, int32_t theLength = 0) noexcept
        : name(theName)
        , data(theData)
        , type(theType)
        , length(theLength)
    {
    }
};

struct PluginFieldCollection
{
    int32_t nbFields;
    PluginField const* fields;
};

class ILogger
{
public:
    enum class Severity : int32_t
    {
        kINTERNAL_ERROR,
        kERROR,
        kWARNING,
        kINFO,
        kVERBOSE,
    };

    virtual void log(Severity severity, AsciiChar const* message) noexcept = 0;
    virtual ~ILogger() = default;
};

class ILoggerFinder
{
public:
    virtual ILogger* findLogger() = 0;

protected:
    virtual ~ILoggerFinder() = default;
};

// ---- sizes that are not known yet ------------------------------------------------------------------------

class IDimensionExpr;

namespace apiv
{
class VDimensionExpr
{
public:
    virtual ~VDimensionExpr() noexcept = default;
    virtual bool isConstant() const = 0;
    virtual int64_t getConstantValue() const = 0;
    virtual bool isSizeTensor() const = 0;
};

class VExprBuilder
{
public:
    virtual ~VExprBuilder() noexcept = default;
    virtual IDimensionExpr const* constant(int64_t value) = 0;
    virtual IDimensionExpr const* operation(
        DimensionOperation op, IDimensionExpr const& first, IDimensionExpr const& second) = 0;
    virtual IDimensionExpr const* declareSizeTensor(
        int32_t outputIndex, IDimensionExpr const& opt, IDimensionExpr const& upper) = 0;
};
} // namespace apiv

class IDimensionExpr
{
public:
    IDimensionExpr() = default;
    IDimensionExpr(IDimensionExpr const&) = delete;
    IDimensionExpr& operator=(IDimensionExpr const&) = delete;

    bool isConstant() const noexcept
    {
        return mImpl->isConstant();
    }

    int64_t getConstantValue() const noexcept
    {
        return mImpl->getConstantValue();
    }

    bool isSizeTensor() const noexcept
    {
        return mImpl->isSizeTensor();
    }

protected:
    virtual ~IDimensionExpr() noexcept = default;
    apiv::VDimensionExpr* mImpl;
};

class IExprBuilder
{
public:
    IExprBuilder() = default;
    IExprBuilder(IExprBuilder const&) = delete;
    IExprBuilder& operator=(IExprBuilder const&) = delete;

    IDimensionExpr const* constant(int64_t value) noexcept
    {
        return mImpl->constant(value);
    }

    IDimensionExpr const* operation(
        DimensionOperation op, IDimensionExpr const& first, IDimensionExpr const& second) noexcept
    {
        return mImpl->operation(op, first, second);
    }

    IDimensionExpr const* declareSizeTensor(int32_t outputIndex, IDimensionExpr const& opt, IDimensionExpr const& upper)
    {
        return mImpl->declareSizeTensor(outputIndex, opt, upper);
    }

protected:
    virtual ~IExprBuilder() noexcept = default;
    apiv::VExprBuilder* mImpl;
};

struct DimsExprs
{
    int32_t nbDims;
    IDimensionExpr const* d[Dims::MAX_DIMS];
};

// ---- a plugin and its creator ----------------------------------------------------------------------------

struct InterfaceInfo
{
    InterfaceKind kind;
    int32_t major;
    int32_t minor;
};

enum class APILanguage : int32_t
{
    kCPP,
    kPYTHON,
};

class IVersionedInterface
{
public:
    virtual APILanguage getAPILanguage() const noexcept
    {
        return APILanguage::kCPP;
    }

    virtual InterfaceInfo getInterfaceInfo() const noexcept = 0;
    virtual ~IVersionedInterface() noexcept = default;
};

class IPluginResourceContext
{
public:
    virtual IGpuAllocator* getGpuAllocator() const noexcept = 0;
    virtual IErrorRecorder* getErrorRecorder() const noexcept = 0;
    virtual ~IPluginResourceContext() noexcept = default;
};

class IPluginCapability : public IVersionedInterface
{
};

class IPluginV3 : public IVersionedInterface
{
public:
    InterfaceInfo getInterfaceInfo() const noexcept override
    {
        return {"PLUGIN", 1, 0};
    }

    virtual IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept = 0;
    virtual IPluginV3* clone() noexcept = 0;
};

class IPluginV3OneCore : public IPluginCapability
{
public:
    InterfaceInfo getInterfaceInfo() const noexcept override
    {
        return {"PLUGIN_V3ONE_CORE", 1, 0};
    }

    virtual AsciiChar const* getPluginName() const noexcept = 0;
    virtual AsciiChar const* getPluginVersion() const noexcept = 0;
    virtual AsciiChar const* getPluginNamespace() const noexcept = 0;
};

class IPluginV3OneBuild : public IPluginCapability
{
public:
    static constexpr int32_t kDEFAULT_FORMAT_COMBINATION_LIMIT = 100;

    InterfaceInfo getInterfaceInfo() const noexcept override
    {
        return {"PLUGIN_V3ONE_BUILD", 1, 0};
    }

    virtual int32_t configurePlugin(DynamicPluginTensorDesc const* in, int32_t nbInputs,
        DynamicPluginTensorDesc const* out, int32_t nbOutputs) noexcept = 0;
    virtual int32_t getOutputDataTypes(
        DataType* outputTypes, int32_t nbOutputs, DataType const* inputTypes, int32_t nbInputs) const noexcept = 0;
    virtual int32_t getOutputShapes(DimsExprs const* inputs, int32_t nbInputs, DimsExprs const* shapeInputs,
        int32_t nbShapeInputs, DimsExprs* outputs, int32_t nbOutputs, IExprBuilder& exprBuilder) noexcept = 0;
    virtual bool supportsFormatCombination(
        int32_t pos, DynamicPluginTensorDesc const* inOut, int32_t nbInputs, int32_t nbOutputs) noexcept = 0;
    virtual int32_t getNbOutputs() const noexcept = 0;

    virtual size_t getWorkspaceSize(
        DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*, int32_t) const noexcept
    {
        return 0;
    }

    virtual int32_t getValidTactics(int32_t*, int32_t) noexcept
    {
        return 0;
    }

    virtual int32_t getNbTactics() noexcept
    {
        return 0;
    }

    virtual char const* getTimingCacheID() noexcept
    {
        return nullptr;
    }

    virtual int32_t getFormatCombinationLimit() noexcept
    {
        return kDEFAULT_FORMAT_COMBINATION_LIMIT;
    }

    virtual char const* getMetadataString() noexcept
    {
        return nullptr;
    }
};

class IPluginV3OneBuildV2 : public IPluginV3OneBuild
{
public:
    InterfaceInfo getInterfaceInfo() const noexcept override
    {
        return {"PLUGIN_V3ONE_BUILD", 2, 0};
    }

    virtual int32_t getAliasedInput(int32_t) noexcept
    {
        return -1;
    }
};

class IPluginV3OneRuntime : public IPluginCapability
{
public:
    InterfaceInfo getInterfaceInfo() const noexcept override
    {
        return {"PLUGIN_V3ONE_RUNTIME", 1, 0};
    }

    virtual int32_t setTactic(int32_t) noexcept
    {
        return 0;
    }

    virtual int32_t onShapeChange(
        PluginTensorDesc const* in, int32_t nbInputs, PluginTensorDesc const* out, int32_t nbOutputs) noexcept = 0;
    virtual int32_t enqueue(PluginTensorDesc const* inputDesc, PluginTensorDesc const* outputDesc,
        void const* const* inputs, void* const* outputs, void* workspace, cudaStream_t stream) noexcept = 0;
    virtual IPluginV3* attachToContext(IPluginResourceContext* context) noexcept = 0;
    virtual PluginFieldCollection const* getFieldsToSerialize() noexcept = 0;
};

class IPluginCreatorInterface : public IVersionedInterface
{
};

class IPluginCreatorV3One : public IPluginCreatorInterface
{
public:
    InterfaceInfo getInterfaceInfo() const noexcept override
    {
        return {"PLUGIN CREATOR_V3ONE", 1, 0};
    }

    virtual IPluginV3* createPlugin(
        AsciiChar const* name, PluginFieldCollection const* fc, TensorRTPhase phase) noexcept = 0;
    virtual PluginFieldCollection const* getFieldNames() noexcept = 0;
    virtual AsciiChar const* getPluginName() const noexcept = 0;
    virtual AsciiChar const* getPluginVersion() const noexcept = 0;
    virtual AsciiChar const* getPluginNamespace() const noexcept = 0;
};

} // namespace nvinfer1
