#include "common/half.h"
#include "common/ort_adapter.h"
#include "token_select/contract.h"
#include "token_select/kernel_cpu.h"

namespace trtc::token_select
{

namespace
{
struct OrtForm
{
    static Contract const& contract()
    {
        return token_select::contract();
    }

    static Error compute(OrtCall& call)
    {
        Sizes const sizes = sizesOf(call.attributes(), call.shapes());
        void* const workspace = call.workspace(cpuWorkspaceBytes(sizes));
        dispatchFloat(call.dtype(0),
            [&](auto tag)
            {
                using T = typename decltype(tag)::Type;
                selectTokens(sizes, call.input<T>(0), call.input<void>(1), call.dtype(1), call.output<T>(0),
                    call.output<int64_t>(1), call.output<int64_t>(2), workspace, call.parallelFor());
            });
        return {};
    }
};
} // namespace

void registerOrt(OrtRegistry& registry)
{
    registry.add<OrtForm>();
}

} // namespace trtc::token_select
