#include "common/cuda_interface.h"

#include <cstring>
#include <exception>

#include "common/cuda_op.h"
#include "common/export.h"

namespace trtc
{

namespace
{
//! A call with all that is computed from it.
struct Parsed
{
    GpuForm const* form{nullptr};
    uint32_t number{0};
    Attributes attributes;
    Shapes inputs;
    Shapes outputs;
    DTypes inputTypes;
    DTypes outputTypes;

    GpuShapes shapes() const
    {
        return {attributes, inputs, outputs, inputTypes, outputTypes};
    }
};

bool typeOf(TrtcTensor const& tensor, DType& dtype)
{
    for (DType const known : kDTYPES)
    {
        if (onnxNumber(known) == tensor.dtype)
        {
            dtype = known;
            return true;
        }
    }
    return false;
}

Error readTensor(
    Contract const& contract, TensorContract const& wanted, TrtcTensor const& given, Shape& shape, DType& dtype)
{
    if (!typeOf(given, dtype))
    {
        return contract.opType() + ": " + wanted.name + " has the type number " + std::to_string(given.dtype)
            + ", which is none of ONNX's that are known here.";
    }
    shape.assign(given.shape, given.shape + given.rank);
    return {};
}

Error checkType(Contract const& contract, TensorContract const& wanted, DType dtype, DTypes const& allowed)
{
    std::string names;
    for (DType const type : allowed)
    {
        if (type == dtype)
        {
            return {};
        }
        names += (names.empty() ? "" : " or ") + std::string(nameOf(type));
    }
    return contract.opType() + ": " + wanted.name + " is " + nameOf(dtype) + "; it must be " + names + ".";
}

Error parse(TrtcCall const& call, Parsed& parsed)
{
    int32_t const number = cudaRegistry().find(call.op_type);
    if (number < 0)
    {
        return std::string("this library has no operator ") + call.op_type + ".";
    }
    parsed.number = static_cast<uint32_t>(number);
    parsed.form = &cudaRegistry().forms()[parsed.number];
    Contract const& contract = *parsed.form->contract;
    if (static_cast<size_t>(call.num_attributes) != contract.attributes.size()
        || static_cast<size_t>(call.num_inputs) != contract.inputs.size()
        || static_cast<size_t>(call.num_outputs) != contract.outputs.size())
    {
        return contract.opType() + ": it has " + std::to_string(contract.attributes.size()) + " attributes, "
            + std::to_string(contract.inputs.size()) + " inputs and " + std::to_string(contract.outputs.size())
            + " outputs.";
    }
    for (size_t i = 0; i < contract.attributes.size(); ++i)
    {
        TrtcAttribute const& given = call.attributes[i];
        parsed.attributes.add(contract.attributes[i], {given.integers, given.integers + given.count}, given.real);
    }
    Error error = checkAttributes(contract, parsed.attributes);
    for (size_t i = 0; error.empty() && i < contract.inputs.size(); ++i)
    {
        Shape shape;
        DType dtype{};
        error = readTensor(contract, contract.inputs[i], call.inputs[i], shape, dtype);
        DTypes allowed = contract.inputs[i].dtypes;
        for (size_t leader = 0; contract.inputs[i].sameDtypeAs != nullptr && leader < i; ++leader)
        {
            if (std::strcmp(contract.inputs[leader].name, contract.inputs[i].sameDtypeAs) == 0)
            {
                allowed = {parsed.inputTypes[leader]};
            }
        }
        error = error.empty() ? checkType(contract, contract.inputs[i], dtype, allowed) : error;
        parsed.inputs.push_back(std::move(shape));
        parsed.inputTypes.push_back(dtype);
    }
    error = error.empty() ? shapesOf(contract, parsed.attributes, parsed.inputs, parsed.outputs) : error;
    if (!error.empty())
    {
        return error;
    }
    parsed.outputTypes = outputTypesOf(contract, parsed.attributes, parsed.inputTypes);
    for (size_t i = 0; error.empty() && i < contract.outputs.size(); ++i)
    {
        Shape shape;
        DType dtype{};
        error = readTensor(contract, contract.outputs[i], call.outputs[i], shape, dtype);
        error = error.empty() ? checkType(contract, contract.outputs[i], dtype, {parsed.outputTypes[i]}) : error;
        if (error.empty())
        {
            error = checkShape(contract.outputs[i].name, shape, parsed.outputs[i], "MMMMM");
            error = error.empty() ? error : contract.opType() + ": " + error;
        }
    }
    return error.empty() ? checkGpuLimits(*parsed.form, parsed.shapes()) : error;
}

//! Runs `body`, which returns an Error, and hands the sentence out.
template <typename Body>
int32_t answer(Body const& body, char* message, size_t messageBytes) noexcept
{
    try
    {
        Error const error = body();
        if (message != nullptr && messageBytes > 0)
        {
            size_t const length = std::min(error.size(), messageBytes - 1);
            std::memcpy(message, error.data(), length);
            message[length] = '\0';
        }
        return error.empty() ? 0 : 1;
    }
    catch (std::exception const&)
    {
        return 2;
    }
}
} // namespace

} // namespace trtc

TRTC_EXPORT char const* trtcDescribe(void)
{
    static std::string const sText = trtc::describe("cuda", trtc::cudaRegistry().contracts());
    return sText.c_str();
}

TRTC_EXPORT int32_t trtcWorkspaceBytes(TrtcCall const* call, size_t* bytes, char* message, size_t messageBytes)
{
    return trtc::answer(
        [&]
        {
            trtc::Parsed parsed;
            trtc::Error error = trtc::parse(*call, parsed);
            bool const needs = error.empty() && parsed.form->workspaceBytes != nullptr;
            *bytes = needs ? parsed.form->workspaceBytes(parsed.shapes()) : 0;
            return error;
        },
        message, messageBytes);
}

TRTC_EXPORT int32_t trtcEnqueue(TrtcCall const* call, void* workspace, void* stream, char* message, size_t messageBytes)
{
    return trtc::answer(
        [&]
        {
            trtc::Parsed parsed;
            trtc::Error error = trtc::parse(*call, parsed);
            if (!error.empty())
            {
                return error;
            }
            std::vector<void const*> inputs;
            std::vector<void*> outputs;
            for (int32_t i = 0; i < call->num_inputs; ++i)
            {
                inputs.push_back(call->inputs[i].data);
            }
            for (int32_t i = 0; i < call->num_outputs; ++i)
            {
                outputs.push_back(call->outputs[i].data);
            }
            trtc::GpuShapes const shapes = parsed.shapes();
            cudaError_t const status = parsed.form->enqueue({shapes, inputs.data(), outputs.data(), workspace,
                trtc::faultSlot(parsed.number), static_cast<cudaStream_t>(stream)});
            if (status != cudaSuccess)
            {
                error = std::string(call->op_type) + ": the launch failed: " + cudaGetErrorString(status) + ".";
            }
            return error;
        },
        message, messageBytes);
}

TRTC_EXPORT int32_t trtcTakeFault(char* message, size_t messageBytes)
{
    return trtc::answer([] { return trtc::takeFault(trtc::cudaRegistry().contracts()); }, message, messageBytes);
}
