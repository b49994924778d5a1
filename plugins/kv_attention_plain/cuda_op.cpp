#include "common/cuda_op.h"
#include "kv_attention/kernel.cuh"
#include "kv_attention_plain/contract.h"

namespace trtc::kv_attention_plain
{

namespace
{
kv_attention::Sizes sizesOfCall(GpuShapes const& shapes)
{
    return sizesOf(shapes.attributes, shapes.inputs, shapes.inputTypes[1]);
}

size_t workspaceBytes(GpuShapes const& shapes)
{
    return kv_attention::kvAttentionWorkspaceBytes(sizesOfCall(shapes));
}

cudaError_t enqueue(GpuCall const& call)
{
    GpuShapes const& shapes = call.shapes;
    kv_attention::GpuCache const keys{call.input<uint8_t>(1), nullptr, nullptr, DType::kFLOAT32};
    kv_attention::GpuCache const values{call.input<uint8_t>(2), nullptr, nullptr, DType::kFLOAT32};
    kv_attention::GpuTensors const tensors{call.inputs[0], shapes.inputTypes[0], keys, values, call.input<int64_t>(3),
        call.inputs[4], shapes.inputTypes[4], call.input<int64_t>(5), call.outputs[0], call.output<float>(1)};
    return kv_attention::launchKvAttention(sizesOfCall(shapes), tensors, call.workspace, call.stream);
}

Error limits(GpuShapes const& shapes)
{
    return kv_attention::gpuLimits(sizesOfCall(shapes), DType::kFLOAT32, DType::kFLOAT32);
}
} // namespace

void registerCuda(CudaRegistry& registry)
{
    registry.add({&contract(), &workspaceBytes, &enqueue, &limits});
}

} // namespace trtc::kv_attention_plain
