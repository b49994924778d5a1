#include "common/cuda_op.h"
#include "token_mix/kernel.cuh"

namespace trtc::token_mix
{

namespace
{
size_t workspaceBytes(GpuShapes const& shapes)
{
    return tokenMixWorkspaceBytes(sizesOf(shapes.attributes, shapes.inputs));
}

cudaError_t enqueue(GpuCall const& call)
{
    GpuShapes const& shapes = call.shapes;
    return launchTokenMix(sizesOf(shapes.attributes, shapes.inputs), call.inputs[0], shapes.inputTypes[0],
        call.inputs[1], shapes.inputTypes[1], call.outputs[0], call.workspace, call.stream);
}
} // namespace

void registerCuda(CudaRegistry& registry)
{
    registry.add({&contract(), &workspaceBytes, &enqueue});
}

} // namespace trtc::token_mix
