#include "common/cuda_op.h"
#include "kv_dequantize/kernel.cuh"

namespace trtc::kv_dequantize
{

namespace
{
cudaError_t enqueue(GpuCall const& call)
{
    GpuShapes const& shapes = call.shapes;
    return launchKvDequantize(sizesOf(shapes.attributes, shapes.inputs), call.input<uint8_t>(0), call.inputs[1],
        call.inputs[2], shapes.inputTypes[1], call.outputs[0], shapes.outputTypes[0], call.stream);
}

Error limits(GpuShapes const& shapes)
{
    Sizes const sizes = sizesOf(shapes.attributes, shapes.inputs);
    if (sizes.length() > kMOST || sizes.width() > kMOST)
    {
        return "a cache of L=" + std::to_string(sizes.length()) + ", D=" + std::to_string(sizes.width())
            + " is too large for the GPU form; at most " + std::to_string(kMOST) + " of each are allowed.";
    }

    return {};
}
} // namespace

void registerCuda(CudaRegistry& registry)
{
    registry.add({&contract(), nullptr, &enqueue, &limits});
}

} // namespace trtc::kv_dequantize
