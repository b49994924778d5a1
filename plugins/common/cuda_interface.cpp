#include "common/cuda_interface.h"

#include "common/cuda_op.h"
#include "common/export.h"
#include "common/parsed_call.h"

namespace trtc
{

namespace
{
//! A call with the form that runs it.
struct GpuRun : ParsedCall
{
    GpuForm const* form{nullptr};

    GpuShapes shapes() const
    {
        return {attributes, inputs, outputs, inputTypes, outputTypes};
    }
};

Error parse(TrtcCall const& call, GpuRun& run)
{
    Error error = parseCall(cudaRegistry().contracts(), call, run);
    error = error.empty() ? checkOutputs(call, run) : error;
    if (error.empty())
    {
        run.form = &cudaRegistry().forms()[run.number];
        error = checkGpuLimits(*run.form, run.shapes());
    }
    return error;
}
} // namespace

} // namespace trtc

TRTC_EXPORT char const* trtcDescribe(void)
{
    static std::string const sText = trtc::describe("cuda", trtc::cudaRegistry().contracts());
    return sText.c_str();
}

TRTC_EXPORT int32_t trtcOutputShapes(
    TrtcCall const* call, char* text, size_t textBytes, char* message, size_t messageBytes)
{
    return trtc::outputShapes(trtc::cudaRegistry().contracts(), *call, text, textBytes, message, messageBytes);
}

TRTC_EXPORT int32_t trtcWorkspaceBytes(TrtcCall const* call, size_t* bytes, char* message, size_t messageBytes)
{
    return trtc::answer(
        [&]
        {
            trtc::GpuRun run;
            trtc::Error error = trtc::parse(*call, run);
            bool const needs = error.empty() && run.form->workspaceBytes != nullptr;
            *bytes = needs ? run.form->workspaceBytes(run.shapes()) : 0;
            return error;
        },
        message, messageBytes);
}

TRTC_EXPORT int32_t trtcEnqueue(TrtcCall const* call, void* workspace, void* stream, char* message, size_t messageBytes)
{
    return trtc::answer(
        [&]
        {
            trtc::GpuRun run;
            trtc::Error error = trtc::parse(*call, run);
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
            trtc::GpuShapes const shapes = run.shapes();
            cudaError_t const status = run.form->enqueue({shapes, inputs.data(), outputs.data(), workspace,
                trtc::faultSlot(static_cast<uint32_t>(run.number)), static_cast<cudaStream_t>(stream)});
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
