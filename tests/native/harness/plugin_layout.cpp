// Prints, a line each, how the plugin interface of the TensorRT headers it is compiled against lies in memory: sizes,
// offsets, enumerators, and the place of every virtual function in its table.

#include <NvInferRuntime.h>

#include <cstddef>
#include <cstdio>
#include <cstring>

using namespace nvinfer1;

namespace
{

// A pointer to a virtual function holds one more than its offset in the table (Itanium C++ ABI, section 2.3), or on
// aarch64 the offset itself.
template <typename Function>
long slotOf(Function function)
{
    std::ptrdiff_t words[2];
    static_assert(sizeof(function) == sizeof(words), "no pointer to a member of the Itanium C++ ABI");
    std::memcpy(words, &function, sizeof(words));
    return static_cast<long>(words[0] / static_cast<std::ptrdiff_t>(sizeof(void*)));
}

struct Dimension : IDimensionExpr
{
    static std::size_t offset()
    {
        return offsetof(Dimension, mImpl);
    }
};

struct Builder : IExprBuilder
{
    static std::size_t offset()
    {
        return offsetof(Builder, mImpl);
    }
};

} // namespace

#define SIZE(type) std::printf("sizeof " #type " %zu\nalignof " #type " %zu\n", sizeof(type), alignof(type))
#define OFFSET(type, member) std::printf("offset " #type "." #member " %zu\n", offsetof(type, member))
#define VALUE(name) std::printf("value " #name " %ld\n", static_cast<long>(name))
#define SLOT(type, function) std::printf("slot " #type "." #function " %ld\n", slotOf(&type::function))

int main()
{
    SIZE(Dims);
    OFFSET(Dims, nbDims);
    OFFSET(Dims, d);
    VALUE(Dims::MAX_DIMS);
    SIZE(PluginTensorDesc);
    OFFSET(PluginTensorDesc, dims);
    OFFSET(PluginTensorDesc, type);
    OFFSET(PluginTensorDesc, format);
    OFFSET(PluginTensorDesc, scale);
    SIZE(DynamicPluginTensorDesc);
    OFFSET(DynamicPluginTensorDesc, desc);
    OFFSET(DynamicPluginTensorDesc, min);
    OFFSET(DynamicPluginTensorDesc, max);
    OFFSET(DynamicPluginTensorDesc, opt);
    SIZE(PluginField);
    OFFSET(PluginField, name);
    OFFSET(PluginField, data);
    OFFSET(PluginField, type);
    OFFSET(PluginField, length);
    SIZE(PluginFieldCollection);
    OFFSET(PluginFieldCollection, nbFields);
    OFFSET(PluginFieldCollection, fields);
    SIZE(DimsExprs);
    OFFSET(DimsExprs, nbDims);
    OFFSET(DimsExprs, d);
    SIZE(InterfaceInfo);
    OFFSET(InterfaceInfo, kind);
    OFFSET(InterfaceInfo, major);
    OFFSET(InterfaceInfo, minor);
    SIZE(IDimensionExpr);
    std::printf("offset IDimensionExpr.mImpl %zu\n", Dimension::offset());
    SIZE(IExprBuilder);
    std::printf("offset IExprBuilder.mImpl %zu\n", Builder::offset());
    SIZE(ILogger);
    SIZE(ILoggerFinder);
    SIZE(IVersionedInterface);
    SIZE(IPluginResourceContext);
    SIZE(IPluginV3);
    SIZE(IPluginV3OneCore);
    SIZE(IPluginV3OneBuild);
    SIZE(IPluginV3OneBuildV2);
    SIZE(IPluginV3OneRuntime);
    SIZE(IPluginCreatorV3One);

    SIZE(APILanguage);
    VALUE(APILanguage::kCPP);
    VALUE(APILanguage::kPYTHON);
    SIZE(DataType);
    VALUE(DataType::kFLOAT);
    VALUE(DataType::kHALF);
    VALUE(DataType::kINT8);
    VALUE(DataType::kINT32);
    VALUE(DataType::kBOOL);
    VALUE(DataType::kUINT8);
    VALUE(DataType::kFP8);
    VALUE(DataType::kBF16);
    VALUE(DataType::kINT64);
    VALUE(DataType::kINT4);
    SIZE(TensorFormat);
    VALUE(TensorFormat::kLINEAR);
    SIZE(DimensionOperation);
    VALUE(DimensionOperation::kSUM);
    VALUE(DimensionOperation::kPROD);
    VALUE(DimensionOperation::kMAX);
    VALUE(DimensionOperation::kMIN);
    VALUE(DimensionOperation::kSUB);
    VALUE(DimensionOperation::kEQUAL);
    VALUE(DimensionOperation::kLESS);
    VALUE(DimensionOperation::kFLOOR_DIV);
    VALUE(DimensionOperation::kCEIL_DIV);
    SIZE(PluginFieldType);
    VALUE(PluginFieldType::kFLOAT16);
    VALUE(PluginFieldType::kFLOAT32);
    VALUE(PluginFieldType::kFLOAT64);
    VALUE(PluginFieldType::kINT8);
    VALUE(PluginFieldType::kINT16);
    VALUE(PluginFieldType::kINT32);
    VALUE(PluginFieldType::kCHAR);
    VALUE(PluginFieldType::kDIMS);
    VALUE(PluginFieldType::kUNKNOWN);
    VALUE(PluginFieldType::kBF16);
    VALUE(PluginFieldType::kINT64);
    VALUE(PluginFieldType::kFP8);
    VALUE(PluginFieldType::kINT4);
    SIZE(PluginCapabilityType);
    VALUE(PluginCapabilityType::kCORE);
    VALUE(PluginCapabilityType::kBUILD);
    VALUE(PluginCapabilityType::kRUNTIME);
    SIZE(TensorRTPhase);
    VALUE(TensorRTPhase::kBUILD);
    VALUE(TensorRTPhase::kRUNTIME);
    SIZE(ILogger::Severity);
    VALUE(ILogger::Severity::kINTERNAL_ERROR);
    VALUE(ILogger::Severity::kERROR);
    VALUE(ILogger::Severity::kWARNING);
    VALUE(ILogger::Severity::kINFO);
    VALUE(ILogger::Severity::kVERBOSE);
    VALUE(IPluginV3OneBuild::kDEFAULT_FORMAT_COMBINATION_LIMIT);

    SLOT(ILogger, log);
    SLOT(ILoggerFinder, findLogger);
    SLOT(apiv::VDimensionExpr, isConstant);
    SLOT(apiv::VDimensionExpr, getConstantValue);
    SLOT(apiv::VDimensionExpr, isSizeTensor);
    SLOT(apiv::VExprBuilder, constant);
    SLOT(apiv::VExprBuilder, operation);
    SLOT(apiv::VExprBuilder, declareSizeTensor);
    SLOT(IVersionedInterface, getAPILanguage);
    SLOT(IVersionedInterface, getInterfaceInfo);
    SLOT(IPluginResourceContext, getGpuAllocator);
    SLOT(IPluginResourceContext, getErrorRecorder);
    SLOT(IPluginV3, getInterfaceInfo);
    SLOT(IPluginV3, getCapabilityInterface);
    SLOT(IPluginV3, clone);
    SLOT(IPluginV3OneCore, getPluginName);
    SLOT(IPluginV3OneCore, getPluginVersion);
    SLOT(IPluginV3OneCore, getPluginNamespace);
    SLOT(IPluginV3OneBuild, configurePlugin);
    SLOT(IPluginV3OneBuild, getOutputDataTypes);
    SLOT(IPluginV3OneBuild, getOutputShapes);
    SLOT(IPluginV3OneBuild, supportsFormatCombination);
    SLOT(IPluginV3OneBuild, getNbOutputs);
    SLOT(IPluginV3OneBuild, getWorkspaceSize);
    SLOT(IPluginV3OneBuild, getValidTactics);
    SLOT(IPluginV3OneBuild, getNbTactics);
    SLOT(IPluginV3OneBuild, getTimingCacheID);
    SLOT(IPluginV3OneBuild, getFormatCombinationLimit);
    SLOT(IPluginV3OneBuild, getMetadataString);
    SLOT(IPluginV3OneBuildV2, getAliasedInput);
    SLOT(IPluginV3OneRuntime, setTactic);
    SLOT(IPluginV3OneRuntime, onShapeChange);
    SLOT(IPluginV3OneRuntime, enqueue);
    SLOT(IPluginV3OneRuntime, attachToContext);
    SLOT(IPluginV3OneRuntime, getFieldsToSerialize);
    SLOT(IPluginCreatorV3One, createPlugin);
    SLOT(IPluginCreatorV3One, getFieldNames);
    SLOT(IPluginCreatorV3One, getPluginName);
    SLOT(IPluginCreatorV3One, getPluginVersion);
    SLOT(IPluginCreatorV3One, getPluginNamespace);
}
