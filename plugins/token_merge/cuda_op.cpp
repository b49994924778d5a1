#include "common/cuda_op.h"
#include "token_merge/kernel.cuh"

namespace trtc::token_merge
{

namespace
{
size_t workspaceBytes(GpuShapes const& shapes)
{
    return tokenMergeWorkspaceBytes(sizesOf(shapes.attributes, shapes.inputs));
}

cudaError_t enqueue(GpuCall const& call)
{
    GpuShapes const& shapes = call.shapes;
    return launchTokenMerge(sizesOf(shapes.attributes, shapes.inputs), call.inputs[0], shapes.inputTypes[0],
        call.inputs[1], shapes.inputTypes[1], call.input<float>(2), call.outputs[0], call.output<float>(1),
        call.output<int64_t>(2), call.workspace, call.stream);
}

Error limits(GpuShapes const& shapes)
{
    Sizes const sizes = sizesOf(shapes.attributes, shapes.inputs);
    int64_t const numFree = sizes.numTokens - sizes.numProtected;
    return numFree <= kMOST_FREE ? Error{}
                                 : std::to_string(numFree) + " unprotected tokens are too many for the GPU; at most "
            + std::to_string(kMOST_FREE) + " are allowed.";
}
} // namespace

void registerCuda(CudaRegistry& registry)
{
    registry.add({&contract(), &workspaceBytes, &enqueue, &limits});
}

} // namespace trtc::token_merge
