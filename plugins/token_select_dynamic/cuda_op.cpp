#include "common/cuda_op.h"
#include "token_select_dynamic/kernel.cuh"

namespace trtc::token_select_dynamic
{

namespace
{
size_t workspaceBytes(GpuShapes const& shapes)
{
    return tokenSelectDynamicWorkspaceBytes(sizesOf(shapes.attributes, shapes.inputs));
}

cudaError_t enqueue(GpuCall const& call)
{
    GpuShapes const& shapes = call.shapes;
    return launchTokenSelectDynamic(sizesOf(shapes.attributes, shapes.inputs), call.inputs[0], shapes.inputTypes[0],
        call.inputs[1], shapes.inputTypes[1], call.outputs[0], call.output<int64_t>(1), call.outputs[2],
        call.output<int64_t>(3), call.output<int32_t>(4), call.workspace, call.stream);
}

Error limits(GpuShapes const& shapes)
{
    size_t const numForced = sizesOf(shapes.attributes, shapes.inputs).forced.size();
    if (numForced <= static_cast<size_t>(kMOST_FORCED))
    {
        return {};
    }
    return std::to_string(numForced) + " forced positions are too many for the GPU; at most "
        + std::to_string(kMOST_FORCED) + " are allowed.";
}
} // namespace

void registerCuda(CudaRegistry& registry)
{
    registry.add({&contract(), &workspaceBytes, &enqueue, &limits});
}

} // namespace trtc::token_select_dynamic
