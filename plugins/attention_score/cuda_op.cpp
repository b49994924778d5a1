#include "common/cuda_op.h"
#include "attention_score/kernel.cuh"

namespace trtc::attention_score
{

namespace
{
size_t workspaceBytes(GpuShapes const& shapes)
{
    return attentionScoreWorkspaceBytes(sizesOf(shapes.attributes, shapes.inputs));
}

cudaError_t enqueue(GpuCall const& call)
{
    GpuShapes const& shapes = call.shapes;
    Types const types{shapes.inputTypes[0], shapes.inputTypes[1], shapes.inputTypes[3]};
    return launchAttentionScore(sizesOf(shapes.attributes, shapes.inputs), types, call.inputs[0], call.inputs[1],
        call.input<int64_t>(2), call.inputs[3], call.input<int64_t>(4), call.output<float>(0), call.workspace,
        call.stream);
}
} // namespace

void registerCuda(CudaRegistry& registry)
{
    registry.add({&contract(), &workspaceBytes, &enqueue});
}

} // namespace trtc::attention_score
