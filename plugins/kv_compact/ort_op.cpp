#include "common/ort_adapter.h"
#include "kv_compact/contract.h"
#include "kv_compact/kernel_cpu.h"

namespace trtc::kv_compact
{

namespace
{
struct OrtForm
{
    static Contract const& contract()
    {
        return kv_compact::contract();
    }

    static Error compute(OrtCall& call)
    {
        Sizes const sizes = sizesOf(call.shapes(), call.dtype(0));
        Error const error = checkIndex(sizes, call.input<int64_t>(1));
        if (error.empty())
        {
            compactRows(sizes, call.input<void>(0), call.input<int64_t>(1), call.output<void>(0), call.parallelFor());
        }
        return error;
    }
};
} // namespace

void registerOrt(OrtRegistry& registry)
{
    registry.add<OrtForm>();
}

} // namespace trtc::kv_compact
