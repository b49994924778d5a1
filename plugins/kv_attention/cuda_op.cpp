#include "common/cuda_op.h"
#include "kv_attention/kernel.cuh"

namespace trtc::kv_attention
{

namespace
{
size_t workspaceBytes(GpuShapes const& shapes)
{
    return kvAttentionWorkspaceBytes(sizesOf(shapes.attributes, shapes.inputs));
}

cudaError_t enqueue(GpuCall const& call)
{
    GpuShapes const& shapes = call.shapes;
    GpuCache const keys{call.input<uint8_t>(1), call.inputs[2], call.inputs[3], shapes.inputTypes[2]};
    GpuCache const values{call.input<uint8_t>(4), call.inputs[5], call.inputs[6], shapes.inputTypes[5]};
    GpuTensors const tensors{call.inputs[0], shapes.inputTypes[0], keys, values, call.input<int64_t>(7), call.inputs[8],
        shapes.inputTypes[8], call.input<int64_t>(9), call.outputs[0], call.output<float>(1),
        {call.inputs[10], call.inputs[11], shapes.inputTypes[10]},
        {call.inputs[12], call.inputs[13], shapes.inputTypes[10]}, call.input<float>(14)};
    return launchKvAttention(sizesOf(shapes.attributes, shapes.inputs), tensors, call.workspace, call.stream);
}

Error limits(GpuShapes const& shapes)
{
    return gpuLimits(sizesOf(shapes.attributes, shapes.inputs), shapes.inputTypes[2], shapes.inputTypes[5]);
}
} // namespace

Error gpuLimits(Sizes const& sizes, DType keyScales, DType valueScales)
{
    if (sizes.width > kMOST_WIDTH)
    {
        return "heads of D=" + std::to_string(sizes.width) + " are too wide for the GPU form; at most "
            + std::to_string(kMOST_WIDTH) + " are allowed.";
    }
    int64_t const bytes = std::max(headBytes(sizes.keys, keyScales), headBytes(sizes.values, valueScales));
    return bytes <= kMOST_HEAD_BYTES ? Error{}
                                     : std::string("the ") + (sizes.keys.isFloat() ? "keys" : "codes or scales")
            + " of one KV head take " + std::to_string(bytes) + " bytes, too much for the GPU form; at most "
            + std::to_string(kMOST_HEAD_BYTES) + " are allowed.";
}

void registerCuda(CudaRegistry& registry)
{
    registry.add({&contract(), &workspaceBytes, &enqueue, &limits});
}

} // namespace trtc::kv_attention
