#include "common/cuda_op.h"
#include "codebook_encode/kernel.cuh"

namespace trtc::codebook_encode
{

namespace
{
size_t workspaceBytes(GpuShapes const& shapes)
{
    return codebookEncodeWorkspaceBytes(sizesOf(shapes.attributes, shapes.inputs), shapes.inputTypes[0]);
}

cudaError_t enqueue(GpuCall const& call)
{
    GpuShapes const& shapes = call.shapes;
    return launchCodebookEncode(sizesOf(shapes.attributes, shapes.inputs), call.inputs[0], shapes.inputTypes[0],
        call.inputs[1], shapes.inputTypes[1], call.output<int64_t>(0), call.workspace, call.fault, call.stream);
}
} // namespace

void registerCuda(CudaRegistry& registry)
{
    registry.add({&contract(), &workspaceBytes, &enqueue});
}

} // namespace trtc::codebook_encode
