#include "common/ort_adapter.h"

#include <atomic>
#include <cstring>
#include <exception>
#include <stdexcept>

#include "common/export.h"
#include "common/parsed_call.h"

namespace trtc
{

namespace
{
OrtApi const* gApi = nullptr;

constexpr ONNXTensorElementDataType ortType(DType dtype) noexcept
{
    switch (dtype)
    {
    case DType::kFLOAT32: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
    case DType::kFLOAT16: return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16;
    case DType::kBFLOAT16: return ONNX_TENSOR_ELEMENT_DATA_TYPE_BFLOAT16;
    case DType::kINT64: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64;
    case DType::kINT32: return ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32;
    case DType::kUINT8: return ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
    }
    return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
}

OrtStatus* fail(Error const& error) noexcept
{
    return gApi->CreateStatus(ORT_INVALID_ARGUMENT, error.c_str());
}

//! Runs `body`, which returns an Error; what it throws (no memory, a failed call of the API) becomes a status too.
template <typename Body>
OrtStatus* guarded(Body const& body) noexcept
{
    try
    {
        Error const error = body();
        return error.empty() ? nullptr : fail(error);
    }
    catch (std::exception const& error)
    {
        return gApi->CreateStatus(ORT_FAIL, error.what());
    }
}

void throwOnError(OrtStatus* status)
{
    if (status != nullptr)
    {
        std::string const message = gApi->GetErrorMessage(status);
        gApi->ReleaseStatus(status);
        throw std::runtime_error(message);
    }
}

bool succeeded(OrtStatus* status) noexcept
{
    if (status != nullptr)
    {
        gApi->ReleaseStatus(status);
    }
    return status == nullptr;
}

//! Reads one attribute; false if the node does not have it, or has it as another kind.
bool readAttribute(OrtKernelInfo const* info, AttributeContract const& wanted, Attributes& attributes)
{
    std::vector<int64_t> integers(1);
    float real = 0.0F;
    bool found = false;
    switch (wanted.kind)
    {
    case AttributeKind::kINT:
        found = succeeded(gApi->KernelInfoGetAttribute_int64(info, wanted.name, integers.data()));
        break;
    case AttributeKind::kFLOAT: found = succeeded(gApi->KernelInfoGetAttribute_float(info, wanted.name, &real)); break;
    case AttributeKind::kINTS:
    {
        size_t count = 0;
        found = succeeded(gApi->KernelInfoGetAttributeArray_int64(info, wanted.name, nullptr, &count));
        integers.resize(count);
        found = found
            && (count == 0
                || succeeded(gApi->KernelInfoGetAttributeArray_int64(info, wanted.name, integers.data(), &count)));
        break;
    }
    }
    attributes.add(wanted, std::move(integers), real);
    return found;
}

Error readAttributes(OrtKernelInfo const* info, Contract const& contract, Attributes& attributes)
{
    for (AttributeContract const& wanted : contract.attributes)
    {
        if (!readAttribute(info, wanted, attributes))
        {
            constexpr char const* kKINDS[] = {"a whole number", "a list of whole numbers", "a number"};
            return contract.opType() + ": the attribute " + wanted.name + " is missing or not "
                + kKINDS[static_cast<size_t>(wanted.kind)] + "; export the model again.";
        }
    }
    size_t length = 0;
    if (succeeded(gApi->KernelInfoGetAttribute_string(info, "plugin_version", nullptr, &length)))
    {
        std::string version(length, '\0');
        throwOnError(gApi->KernelInfoGetAttribute_string(info, "plugin_version", version.data(), &length));
        version.resize(std::strlen(version.c_str()));
        if (version != std::to_string(contract.version))
        {
            return contract.opType() + ": the model has version " + version
                + " of the operator and the library version " + std::to_string(contract.version)
                + "; export the model again with the same trt-compress.";
        }
    }
    return checkAttributes(contract, attributes);
}

bool fromOrtType(ONNXTensorElementDataType type, DType& dtype) noexcept
{
    for (DType const known : kDTYPES)
    {
        if (ortType(known) == type)
        {
            dtype = known;
            return true;
        }
    }
    return false;
}

using TypeAndShape = std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo*)>;

TypeAndShape own(OrtTensorTypeAndShapeInfo* info)
{
    return {info, gApi->ReleaseTensorTypeAndShapeInfo};
}

Shape dimensionsOf(OrtTensorTypeAndShapeInfo const* info)
{
    size_t rank = 0;
    throwOnError(gApi->GetDimensionsCount(info, &rank));
    Shape shape(rank);
    throwOnError(gApi->GetDimensions(info, shape.data(), rank));
    return shape;
}

//! Attributes of the node whose outputs ONNX Runtime wants to know of; false if one is missing.
bool readAttributes(OrtShapeInferContext const* context, Contract const& contract, Attributes& attributes)
{
    for (AttributeContract const& wanted : contract.attributes)
    {
        OrtOpAttr const* attribute = nullptr;
        std::vector<int64_t> integers(1);
        float real = 0.0F;
        bool const isReal = wanted.kind == AttributeKind::kFLOAT;
        bool const isList = wanted.kind == AttributeKind::kINTS;
        if (!succeeded(gApi->ShapeInferContext_GetAttribute(context, wanted.name, &attribute)))
        {
            return false;
        }
        OrtOpAttrType const type = isReal ? ORT_OP_ATTR_FLOAT : isList ? ORT_OP_ATTR_INTS : ORT_OP_ATTR_INT;
        size_t bytes = 0;
        if (isList)
        {
            // The length is told only by asking with too little room.
            succeeded(gApi->ReadOpAttr(attribute, type, integers.data(), 0, &bytes));
            integers.resize(bytes / sizeof(int64_t));
        }
        void* const to = isReal ? static_cast<void*>(&real) : integers.data();
        size_t const room = isReal ? sizeof(real) : integers.size() * sizeof(int64_t);
        if (!succeeded(gApi->ReadOpAttr(attribute, type, to, room, &bytes)))
        {
            return false;
        }
        attributes.add(wanted, std::move(integers), real);
    }
    return true;
}

//! An unknown size without a name would be taken for the size -1: each gets a name that no other has.
void setSymbols(OrtTensorTypeAndShapeInfo* info, Shape const& sizes)
{
    static std::atomic<uint64_t> sNumber{0};
    std::vector<std::string> names;
    std::vector<char const*> pointers;
    for (int64_t const size : sizes)
    {
        names.push_back(size >= 0 ? std::string() : "trtc_" + std::to_string(sNumber++));
    }
    for (std::string const& name : names)
    {
        pointers.push_back(name.c_str());
    }
    throwOnError(gApi->SetSymbolicDimensions(info, pointers.data(), pointers.size()));
}

//! Types of the outputs, which an attribute may name, and their sizes where those of the inputs are known.
void inferOutputs(OrtShapeInferContext* context, Contract const& contract)
{
    Attributes attributes;
    if (!readAttributes(context, contract, attributes) || !checkAttributes(contract, attributes).empty())
    {
        return; // creating the kernel says what is wrong
    }
    Shapes inputs;
    DTypes types;
    bool areKnown = true;
    for (size_t i = 0; i < contract.inputs.size(); ++i)
    {
        OrtTensorTypeAndShapeInfo* info = nullptr;
        ONNXTensorElementDataType type{};
        DType dtype{};
        if (!succeeded(gApi->ShapeInferContext_GetInputTypeShape(context, i, &info)) || info == nullptr
            || !succeeded(gApi->GetTensorElementType(info, &type)) || !fromOrtType(type, dtype))
        {
            return;
        }
        inputs.push_back(dimensionsOf(info));
        types.push_back(dtype);
        areKnown = areKnown && contract.inputs[i].allowsRank(inputs.back().size());
        for (int64_t const size : inputs.back())
        {
            areKnown = areKnown && size >= 0;
        }
    }
    Shapes outputs;
    areKnown = areKnown && shapesOf(contract, attributes, inputs, outputs).empty();
    bool isTypeNamed = false;
    for (TensorContract const& output : contract.outputs)
    {
        isTypeNamed = isTypeNamed || output.dtypeAttribute != nullptr;
    }
    if (!areKnown && !isTypeNamed)
    {
        return; // the types follow from those of the inputs, and the sizes that the model states stay
    }
    DTypes const outputTypes = outputTypesOf(contract, attributes, types);
    for (size_t i = 0; i < contract.outputs.size(); ++i)
    {
        Shape const sizes = areKnown ? outputs[i] : Shape(static_cast<size_t>(contract.outputs[i].rank), -1);
        OrtTensorTypeAndShapeInfo* made = nullptr;
        throwOnError(gApi->CreateTensorTypeAndShapeInfo(&made));
        TypeAndShape const info = own(made);
        throwOnError(gApi->SetTensorElementType(made, ortType(outputTypes[i])));
        throwOnError(gApi->SetDimensions(made, sizes.data(), sizes.size()));
        setSymbols(made, sizes);
        throwOnError(gApi->ShapeInferContext_SetOutputTypeShape(context, i, made));
    }
}

struct Kernel
{
    Contract const* contract;
    OrtCompute compute;
    Attributes attributes;
    OrtKept kept;
};
} // namespace

//! The function table that ONNX Runtime reads, and what the functions need.
struct OrtRegistry::TypedOperator : OrtCustomOp
{
    Contract const* contract;
    OrtCompute compute;
    std::string opType;
    std::vector<DType> inputTypes;
    std::vector<DType> outputTypes;

    static TypedOperator const& of(OrtCustomOp const* op) noexcept
    {
        return *static_cast<TypedOperator const*>(op);
    }

    TypedOperator(
        Contract const& theContract, OrtCompute theCompute, GetAliases getAliases, ReleaseAliases releaseAliases)
        : OrtCustomOp{}
        , contract(&theContract)
        , compute(theCompute)
        , opType(theContract.opType())
    {
        version = kORT_API;
        GetName = [](OrtCustomOp const* op) { return of(op).opType.c_str(); };
        GetExecutionProviderType = [](OrtCustomOp const*) -> char const* { return "CPUExecutionProvider"; };
        GetInputTypeCount = [](OrtCustomOp const* op) { return of(op).inputTypes.size(); };
        GetInputType = [](OrtCustomOp const* op, size_t index) { return ortType(of(op).inputTypes[index]); };
        GetOutputTypeCount = [](OrtCustomOp const* op) { return of(op).outputTypes.size(); };
        GetOutputType = [](OrtCustomOp const* op, size_t index) { return ortType(of(op).outputTypes[index]); };
        GetInputCharacteristic = [](OrtCustomOp const*, size_t) { return INPUT_OUTPUT_REQUIRED; };
        GetOutputCharacteristic = [](OrtCustomOp const*, size_t) { return INPUT_OUTPUT_REQUIRED; };
        GetInputMemoryType = [](OrtCustomOp const*, size_t) { return OrtMemTypeDefault; };
        GetVariadicInputMinArity = [](OrtCustomOp const*) { return 0; };
        GetVariadicInputHomogeneity = [](OrtCustomOp const*) { return 0; };
        GetVariadicOutputMinArity = [](OrtCustomOp const*) { return 0; };
        GetVariadicOutputHomogeneity = [](OrtCustomOp const*) { return 0; };
        GetStartVersion = [](OrtCustomOp const*) { return 1; };
        GetEndVersion = [](OrtCustomOp const*) { return std::numeric_limits<int>::max(); };
        CreateKernelV2 = [](OrtCustomOp const* op, OrtApi const*, OrtKernelInfo const* info, void** kernel)
        {
            return guarded(
                [&]
                {
                    auto made = std::make_unique<Kernel>();
                    made->contract = of(op).contract;
                    made->compute = of(op).compute;
                    Error const error = readAttributes(info, *made->contract, made->attributes);
                    for (size_t i = 0; i < made->contract->inputs.size(); ++i)
                    {
                        int isConstant = 0;
                        OrtValue const* value = nullptr;
                        throwOnError(gApi->KernelInfoGetConstantInput_tensor(info, i, &isConstant, &value));
                        made->kept.isConstant.push_back(isConstant != 0);
                    }
                    *kernel = error.empty() ? made.release() : nullptr;
                    return error;
                });
        };
        KernelComputeV2 = [](void* kernel, OrtKernelContext* context)
        {
            return guarded(
                [&]
                {
                    auto& made = *static_cast<Kernel*>(kernel);
                    OrtCall call(*gApi, context, *made.contract, made.attributes, made.kept);
                    Error error = call.prepare();
                    if (error.empty())
                    {
                        error = made.compute(call);
                        error = error.empty() ? error : made.contract->opType() + ": " + error;
                    }
                    return error;
                });
        };
        KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
        InferOutputShapeFn = [](OrtCustomOp const* op, OrtShapeInferContext* context)
        {
            return guarded(
                [&]
                {
                    inferOutputs(context, *of(op).contract);
                    return Error{};
                });
        };
        GetMayInplace = getAliases;
        ReleaseMayInplace = releaseAliases;
    }
};

std::vector<OrtCustomOp*> OrtRegistry::operators() const
{
    std::vector<OrtCustomOp*> all;
    for (auto const& typed : mOperators)
    {
        all.push_back(typed.get());
    }
    return all;
}

size_t OrtRegistry::listAliases(Contract const& contract, int** inputs, int** outputs)
{
    std::vector<int> from;
    std::vector<int> to;
    for (size_t output = 0; output < contract.outputs.size(); ++output)
    {
        for (size_t input = 0; input < contract.inputs.size(); ++input)
        {
            char const* const alias = contract.outputs[output].aliasOf;
            if (alias != nullptr && std::strcmp(alias, contract.inputs[input].name) == 0)
            {
                from.push_back(static_cast<int>(input));
                to.push_back(static_cast<int>(output));
            }
        }
    }
    *inputs = new int[from.size()];
    *outputs = new int[to.size()];
    std::copy(from.begin(), from.end(), *inputs);
    std::copy(to.begin(), to.end(), *outputs);
    return from.size();
}

void OrtRegistry::addOperator(Contract const& contract, OrtCompute compute, GetAliases get, ReleaseAliases release)
{
    mContracts.push_back(&contract);
    std::vector<TensorContract> tensors(contract.inputs);
    tensors.insert(tensors.end(), contract.outputs.begin(), contract.outputs.end());
    // Every combination of types, counted as the digits of a number with one digit for each tensor that has a choice.
    size_t combinations = 1;
    for (TensorContract const& tensor : tensors)
    {
        combinations *= tensor.sameDtypeAs == nullptr ? tensor.dtypes.size() : 1;
    }
    for (size_t combination = 0; combination < combinations; ++combination)
    {
        auto typed = std::make_shared<TypedOperator>(contract, compute, get, release);
        size_t rest = combination;
        std::vector<DType> chosen;
        for (TensorContract const& tensor : tensors)
        {
            DType dtype{};
            if (tensor.sameDtypeAs == nullptr)
            {
                dtype = tensor.dtypes[rest % tensor.dtypes.size()];
                rest /= tensor.dtypes.size();
            }
            else
            {
                size_t leader = 0;
                while (std::strcmp(tensors[leader].name, tensor.sameDtypeAs) != 0)
                {
                    ++leader;
                }
                dtype = chosen[leader];
            }
            chosen.push_back(dtype);
        }
        auto const split = chosen.begin() + static_cast<std::ptrdiff_t>(contract.inputs.size());
        typed->inputTypes.assign(chosen.begin(), split);
        typed->outputTypes.assign(split, chosen.end());
        mOperators.push_back(std::move(typed));
    }
}

OrtCall::OrtCall(
    OrtApi const& api, OrtKernelContext* context, Contract const& contract, Attributes const& attributes, OrtKept& kept)
    : mApi(api)
    , mContext(context)
    , mContract(contract)
    , mAttributes(attributes)
    , mKept(kept)
{
}

OrtCall::~OrtCall()
{
    for (void* const scratch : mScratch)
    {
        succeeded(mApi.AllocatorFree(mAllocator, scratch));
    }
    if (mAllocator != nullptr)
    {
        mApi.ReleaseAllocator(mAllocator);
    }
}

Error OrtCall::prepare()
{
    for (size_t i = 0; i < mContract.inputs.size(); ++i)
    {
        OrtValue const* value = nullptr;
        OrtTensorTypeAndShapeInfo* info = nullptr;
        check(mApi.KernelContext_GetInput(mContext, i, &value));
        check(mApi.GetTensorTypeAndShape(value, &info));
        TypeAndShape const owner = own(info);
        Shape shape = dimensionsOf(info);
        ONNXTensorElementDataType type{};
        check(mApi.GetTensorElementType(info, &type));
        DType dtype{};
        fromOrtType(type, dtype);
        void* data = nullptr;
        check(mApi.GetTensorMutableData(const_cast<OrtValue*>(value), &data));
        mShapes.push_back(std::move(shape));
        mDTypes.push_back(dtype);
        mInputs.push_back(data);
    }
    return shapesOf(mContract, mAttributes, mShapes, mOutputShapes);
}

void* OrtCall::workspace(size_t bytes)
{
    if (mAllocator == nullptr)
    {
        static OrtMemoryInfo const* const sInfo = [this]
        {
            OrtMemoryInfo* info = nullptr;
            check(mApi.CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &info));
            return info;
        }();
        check(mApi.KernelContext_GetAllocator(mContext, sInfo, &mAllocator));
    }
    void* memory = nullptr;
    size_t space = bytes + kALIGNMENT;
    check(mApi.AllocatorAlloc(mAllocator, space, &memory));
    mScratch.push_back(memory);
    return std::align(kALIGNMENT, bytes, memory, space);
}

void* OrtCall::keptMemory() const noexcept
{
    void* memory = mKept.memory.data();
    size_t space = mKept.memory.size();
    return std::align(kALIGNMENT, space - kALIGNMENT, memory, space);
}

ParallelFor OrtCall::parallelFor() const noexcept
{
    auto const pool = [](void* context, size_t total, ParallelFor::Task task, void* data)
    { throwOnError(gApi->KernelContext_ParallelFor(static_cast<OrtKernelContext*>(context), task, total, 0, data)); };
    return {pool, mContext};
}

void* OrtCall::allocateOutput(size_t index, Shape const& shape)
{
    OrtValue* value = nullptr;
    void* data = nullptr;
    check(mApi.KernelContext_GetOutput(mContext, index, shape.data(), shape.size(), &value));
    check(mApi.GetTensorMutableData(value, &data));
    return data;
}

void OrtCall::check(OrtStatus* status) const
{
    throwOnError(status);
}

namespace
{
OrtRegistry const& registry()
{
    static OrtRegistry const* const sRegistry = []
    {
        auto* made = new OrtRegistry; // lives as long as any session may
        registerAllOrt(*made);
        return made;
    }();
    return *sRegistry;
}

OrtStatus* registerDomain(OrtSessionOptions* options)
{
    static OrtCustomOpDomain* const sDomain = []
    {
        OrtCustomOpDomain* domain = nullptr; // sessions keep it
        throwOnError(gApi->CreateCustomOpDomain(kDOMAIN, &domain));
        for (OrtCustomOp* const op : registry().operators())
        {
            throwOnError(gApi->CustomOpDomain_Add(domain, op));
        }
        return domain;
    }();
    return gApi->AddCustomOpDomain(options, sDomain);
}
} // namespace

} // namespace trtc

//! What ONNX Runtime calls when the library is registered with session options.
TRTC_EXPORT OrtStatus* ORT_API_CALL RegisterCustomOps(OrtSessionOptions* options, OrtApiBase const* base)
{
    OrtApi const* const api = base->GetApi(trtc::kORT_API);
    if (api == nullptr)
    {
        OrtApi const* const oldest = base->GetApi(1);
        return oldest->CreateStatus(ORT_FAIL, "trt-compress: the operators need ONNX Runtime 1.20 or newer.");
    }
    trtc::gApi = api;
    try
    {
        return trtc::registerDomain(options);
    }
    catch (std::exception const& error)
    {
        return api->CreateStatus(ORT_FAIL, error.what());
    }
}

//! The contracts of all operators, as JSON.
TRTC_EXPORT char const* trtcDescribe()
{
    static std::string const sText = trtc::describe("onnxruntime", trtc::registry().contracts());
    return sText.c_str();
}

TRTC_EXPORT int32_t trtcOutputShapes(
    TrtcCall const* call, char* text, size_t textBytes, char* message, size_t messageBytes)
{
    return trtc::outputShapes(trtc::registry().contracts(), *call, text, textBytes, message, messageBytes);
}
