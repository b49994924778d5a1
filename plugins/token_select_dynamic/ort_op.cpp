#include "common/half.h"
#include "common/ort_adapter.h"
#include "token_select_dynamic/contract.h"
#include "token_select_dynamic/kernel_cpu.h"

namespace trtc::token_select_dynamic
{

namespace
{
struct OrtForm
{
    static Contract const& contract()
    {
        return token_select_dynamic::contract();
    }

    static Error compute(OrtCall& call)
    {
        Sizes const sizes = sizesOf(call.attributes(), call.shapes());
        void* const workspace = call.workspace(cpuWorkspaceBytes(sizes));
        auto* const count = call.output<int64_t>(3);
        int64_t const largest =
            selectTokens(sizes, call.input<void>(1), call.dtype(1), count, workspace, call.parallelFor());
        *call.output<int32_t>(4) = static_cast<int32_t>(largest);
        int64_t const length = sizes.trim ? largest : sizes.maxKept;
        Shape const rows{sizes.batch, length};
        dispatchFloat(call.dtype(0),
            [&](auto tag)
            {
                using T = typename decltype(tag)::Type;
                copyTokens(sizes, length, call.input<T>(0), count,
                    call.output<T>(0, {sizes.batch, length, sizes.channels}), call.output<int64_t>(1, rows),
                    call.output<T>(2, rows), workspace, call.parallelFor());
            });
        return {};
    }
};
} // namespace

void registerOrt(OrtRegistry& registry)
{
    registry.add<OrtForm>();
}

} // namespace trtc::token_select_dynamic
