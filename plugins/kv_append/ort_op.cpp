#include "common/ort_adapter.h"
#include "kv_append/contract.h"
#include "kv_append/kernel_cpu.h"

namespace trtc::kv_append
{

namespace
{
struct OrtForm
{
    static Contract const& contract()
    {
        return kv_append::contract();
    }

    static Error compute(OrtCall& call)
    {
        Sizes const sizes = sizesOf(call.attributes(), call.shapes(), call.dtype(0));
        Error const error = checkPosition(sizes, call.input<int64_t>(2));
        if (error.empty())
        {
            appendRows(sizes, call.input<void>(0), call.input<void>(1), call.input<int64_t>(2), call.output<void>(0),
                call.parallelFor());
        }
        return error;
    }
};
} // namespace

void registerOrt(OrtRegistry& registry)
{
    registry.add<OrtForm>();
}

} // namespace trtc::kv_append
