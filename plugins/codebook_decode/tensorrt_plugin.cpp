#include "codebook_decode/contract.h"
#include "common/tensorrt_adapter.h"

namespace trtc::codebook_decode
{

namespace
{
void setShapes(Attributes const& /*attributes*/, SymbolicShapes const& shapes)
{
    shapes.output(0, {shapes.input(0, 0), shapes.input(0, 1), shapes.input(1, 2)});
}
} // namespace

void registerTensorRt(PluginRegistry& registry)
{
    registry.add(contract(), &setShapes);
}

} // namespace trtc::codebook_decode
