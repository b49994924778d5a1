#include "attention_score/contract.h"
#include "common/tensorrt_adapter.h"

namespace trtc::attention_score
{

namespace
{
void setShapes(Attributes const& attributes, SymbolicShapes const& shapes)
{
    int64_t const heads = attributes.integer("heads"); // 0: each; 1..3 of each group, 4..6 of all
    Expr const parts = heads == 0 ? shapes.input(0, 1) : heads <= 3 ? shapes.input(1, 1) : shapes.constant(1);
    int64_t const start = attributes.integer("start");
    int64_t const stop = attributes.integer("stop");
    Expr const span =
        stop > 0 ? shapes.constant(stop - start) : shapes.difference(shapes.input(1, 2), shapes.constant(start - stop));
    shapes.output(0, {shapes.input(0, 0), parts, span});
}
} // namespace

void registerTensorRt(PluginRegistry& registry)
{
    registry.add(contract(), &setShapes);
}

} // namespace trtc::attention_score
