#include "common/ort_adapter.h"
#include "token_restore/contract.h"
#include "token_restore/kernel_cpu.h"

namespace trtc::token_restore
{

namespace
{
struct OrtForm
{
    static Contract const& contract()
    {
        return token_restore::contract();
    }

    static Error compute(OrtCall& call)
    {
        Sizes const sizes = sizesOf(call.attributes(), call.shapes());
        Error const error = checkIndex(sizes, call.input<int64_t>(1));
        if (error.empty())
        {
            restoreTokens(sizes, call.input<void>(0), sizeOf(call.dtype(0)), call.input<int64_t>(1),
                call.output<void>(0), call.parallelFor());
        }
        return error;
    }
};
} // namespace

void registerOrt(OrtRegistry& registry)
{
    registry.add<OrtForm>();
}

} // namespace trtc::token_restore
