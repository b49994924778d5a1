#include "codebook_encode/contract.h"
#include "codebook_encode/kernel_cpu.h"
#include "common/ort_adapter.h"

namespace trtc::codebook_encode
{

namespace
{
struct OrtForm
{
    static Contract const& contract()
    {
        return codebook_encode::contract();
    }

    static Error compute(OrtCall& call)
    {
        Sizes const sizes = sizesOf(call.attributes(), call.shapes());
        void* const workspace = call.workspace(cpuWorkspaceBytes(sizes));
        auto const* const codebook = call.input<void>(1);
        Digits digits{};
        Error const error =
            sizes.kind == Kind::kFSQ ? readDigits(codebook, call.dtype(1), sizes.width, digits) : Error{};
        if (error.empty())
        {
            dispatchFloat(call.dtype(0),
                [&](auto tag)
                {
                    using T = typename decltype(tag)::Type;
                    encodeTokens(sizes, digits, call.input<T>(0), codebook, call.dtype(1), call.output<int64_t>(0),
                        workspace, call.parallelFor());
                });
        }
        return error;
    }
};
} // namespace

void registerOrt(OrtRegistry& registry)
{
    registry.add<OrtForm>();
}

} // namespace trtc::codebook_encode
