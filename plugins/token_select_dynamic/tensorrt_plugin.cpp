#include <algorithm>

#include "common/tensorrt_adapter.h"
#include "token_select_dynamic/contract.h"

namespace trtc::token_select_dynamic
{

namespace
{
constexpr int32_t kLARGEST = 4; // the output that holds the length of the others if they are trimmed

void setShapes(Attributes const& attributes, SymbolicShapes const& shapes)
{
    int64_t const most = attributes.integer("max_kept");
    Expr length = shapes.constant(most);
    if (attributes.integer("trim") == 1)
    {
        // What kernels behind this one are tuned for: nobody knows the data, so the middle.
        int64_t const usual = std::max<int64_t>((attributes.integer("min_kept") + most) / 2, 1);
        length = shapes.sizeTensor(kLARGEST, shapes.constant(usual), shapes.constant(most));
    }
    Expr const batch = shapes.input(0, 0);
    shapes.output(0, {batch, length, shapes.input(0, 2)});
    shapes.output(1, {batch, length});
    shapes.output(2, {batch, length});
    shapes.output(3, {batch});
    shapes.output(kLARGEST, {});
}
} // namespace

void registerTensorRt(PluginRegistry& registry)
{
    registry.add(contract(), &setShapes);
}

} // namespace trtc::token_select_dynamic
