#include "common/tensorrt_adapter.h"
#include "token_select/contract.h"

namespace trtc::token_select
{

namespace
{
void setShapes(Attributes const& attributes, SymbolicShapes const& shapes)
{
    int64_t const numKept = attributes.integer("num_kept");
    Expr const batch = shapes.input(0, 0);
    Expr const kept = shapes.constant(numKept);
    shapes.output(0, {batch, shapes.constant(numKept + attributes.integer("remainder")), shapes.input(0, 2)});
    shapes.output(1, {batch, kept});
    shapes.output(2, {batch, shapes.difference(shapes.input(0, 1), kept)});
}
} // namespace

void registerTensorRt(PluginRegistry& registry)
{
    registry.add(contract(), &setShapes);
}

} // namespace trtc::token_select
