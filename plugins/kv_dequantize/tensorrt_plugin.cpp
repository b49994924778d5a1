#include "common/tensorrt_adapter.h"
#include "kv_dequantize/contract.h"

namespace trtc::kv_dequantize
{

namespace
{
void setShapes(Attributes const& attributes, SymbolicShapes const& shapes)
{
    auto const parts = shapes.constant(partsOf(static_cast<int32_t>(attributes.integer("bits"))));
    shapes.output(
        0, {shapes.input(0, 0), shapes.input(0, 1), shapes.input(0, 2), shapes.product(shapes.input(0, 3), parts)});
}
} // namespace

void registerTensorRt(PluginRegistry& registry)
{
    registry.add(contract(), &setShapes);
}

} // namespace trtc::kv_dequantize
