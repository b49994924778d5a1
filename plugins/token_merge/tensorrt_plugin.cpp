#include "common/tensorrt_adapter.h"
#include "token_merge/contract.h"

namespace trtc::token_merge
{

namespace
{
void setShapes(Attributes const& attributes, SymbolicShapes const& shapes)
{
    Expr const batch = shapes.input(0, 0);
    Expr const numTokens = shapes.input(0, 1);
    Expr const numOut = shapes.difference(numTokens, shapes.constant(attributes.integer("num_merged")));
    shapes.output(0, {batch, numOut, shapes.input(0, 2)});
    shapes.output(1, {batch, numOut, shapes.constant(1)});
    shapes.output(2, {batch, numTokens});
}
} // namespace

void registerTensorRt(PluginRegistry& registry)
{
    registry.add(contract(), &setShapes);
}

} // namespace trtc::token_merge
