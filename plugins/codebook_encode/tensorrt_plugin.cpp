#include "codebook_encode/contract.h"
#include "common/tensorrt_adapter.h"

namespace trtc::codebook_encode
{

namespace
{
void setShapes(Attributes const& attributes, SymbolicShapes const& shapes)
{
    Expr number = shapes.constant(1); // of an FSQ token
    switch (kindOf(attributes))
    {
    case Kind::kVECTOR: number = shapes.input(1, 0); break;
    case Kind::kTABLE: number = shapes.input(0, 2); break;
    case Kind::kFSQ: break;
    case Kind::kSIGN: number = shapes.quotient(shapes.input(0, 2), shapes.constant(attributes.integer("group"))); break;
    }
    shapes.output(0, {shapes.input(0, 0), shapes.input(0, 1), number});
}
} // namespace

void registerTensorRt(PluginRegistry& registry)
{
    registry.add(contract(), &setShapes);
}

} // namespace trtc::codebook_encode
