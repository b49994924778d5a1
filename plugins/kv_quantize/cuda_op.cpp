#include "common/cuda_op.h"
#include "kv_quantize/kernel.cuh"

namespace trtc::kv_quantize
{

namespace
{
cudaError_t enqueue(GpuCall const& call)
{
    GpuShapes const& shapes = call.shapes;
    return launchKvQuantize(sizesOf(shapes.attributes, shapes.inputs), call.inputs[0], shapes.inputTypes[0],
        call.output<uint8_t>(0), call.outputs[1], call.outputs[2], shapes.outputTypes[1], call.stream);
}

Error limits(GpuShapes const& shapes)
{
    Sizes const sizes = sizesOf(shapes.attributes, shapes.inputs);
    if (sizes.length() > kMOST || sizes.width() > kMOST)
    {
        return "a cache of L=" + std::to_string(sizes.length()) + ", D=" + std::to_string(sizes.width())
            + " is too large for the GPU form; at most " + std::to_string(kMOST) + " of each are allowed.";
    }
    int64_t const groups = sizes.format.scaleColumns();
    if (sizes.format.byToken && groups > kMOST_GROUPS)
    {
        return std::to_string(groups) + " groups of channels are too many for the GPU form; at most "
            + std::to_string(kMOST_GROUPS) + " are allowed: take a larger group.";
    }
    int64_t const blocks = sizes.heads * sizes.format.scaleRows();
    if (!sizes.format.byToken && blocks > kMOST_BLOCKS)
    {
        return std::to_string(blocks) + " groups of tokens are too many for the GPU form; at most "
            + std::to_string(kMOST_BLOCKS) + " are allowed: take a larger group.";
    }
    return {};
}
} // namespace

void registerCuda(CudaRegistry& registry)
{
    registry.add({&contract(), nullptr, &enqueue, &limits});
}

} // namespace trtc::kv_quantize
