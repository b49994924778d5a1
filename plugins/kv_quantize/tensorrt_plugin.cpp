#include "common/tensorrt_adapter.h"
#include "kv_quantize/contract.h"

namespace trtc::kv_quantize
{

namespace
{
void setShapes(Attributes const& attributes, SymbolicShapes const& shapes)
{
    int64_t const group = attributes.integer("group");
    bool const byToken = attributes.integer("axis") == 1;
    Expr const length = shapes.input(0, 2);
    Expr const width = shapes.input(0, 3);
    auto const groupsOf = [&](Expr size)
    { return group == 0 ? shapes.constant(1) : shapes.quotient(size, shapes.constant(group)); };
    Expr const bytes =
        shapes.quotient(width, shapes.constant(partsOf(static_cast<int32_t>(attributes.integer("bits")))));
    Exprs const scales{
        shapes.input(0, 0), shapes.input(0, 1), byToken ? length : groupsOf(length), byToken ? groupsOf(width) : width};
    shapes.output(0, {shapes.input(0, 0), shapes.input(0, 1), length, bytes});
    shapes.output(1, scales);
    shapes.output(2, scales);
}
} // namespace

void registerTensorRt(PluginRegistry& registry)
{
    registry.add(contract(), &setShapes);
}

} // namespace trtc::kv_quantize
