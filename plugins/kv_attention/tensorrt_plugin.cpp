#include "common/tensorrt_adapter.h"
#include "kv_attention/contract.h"

namespace trtc::kv_attention
{

namespace
{
void setShapes(Attributes const& /*attributes*/, SymbolicShapes const& shapes)
{
    Exprs const q{shapes.input(0, 0), shapes.input(0, 1), shapes.input(0, 2), shapes.input(0, 3)};
    shapes.output(0, q);
    shapes.output(1, {q[0], q[1], q[2]});
}
} // namespace

void registerTensorRt(PluginRegistry& registry)
{
    registry.add(contract(), &setShapes);
}

} // namespace trtc::kv_attention
