#include "common/tensorrt_adapter.h"
#include "token_mix/contract.h"

namespace trtc::token_mix
{

namespace
{
void setShapes(Attributes const& /*attributes*/, SymbolicShapes const& shapes)
{
    shapes.output(0, {shapes.input(0, 0), shapes.input(1, 1), shapes.input(0, 2)});
}
} // namespace

void registerTensorRt(PluginRegistry& registry)
{
    registry.add(contract(), &setShapes);
}

} // namespace trtc::token_mix
