#include "codebook_decode/contract.h"
#include "codebook_decode/kernel_cpu.h"
#include "common/ort_adapter.h"

namespace trtc::codebook_decode
{

namespace
{
struct OrtForm
{
    static Contract const& contract()
    {
        return codebook_decode::contract();
    }

    static Error compute(OrtCall& call)
    {
        Sizes const sizes = sizesOf(call.attributes(), call.shapes());
        auto const* const code = call.input<int64_t>(0);
        auto const* const codebook = call.input<void>(1);
        Digits digits{};
        Error error = sizes.kind == Kind::kFSQ
            ? codebook_encode::readDigits(codebook, call.dtype(1), sizes.width, digits)
            : Error{};
        error = error.empty() ? checkCode(sizes, digits, code, call.parallelFor()) : error;
        if (error.empty())
        {
            dispatchFloat(call.dtype(1),
                [&](auto tag)
                {
                    using T = typename decltype(tag)::Type;
                    decodeTokens(
                        sizes, digits, code, static_cast<T const*>(codebook), call.output<T>(0), call.parallelFor());
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

} // namespace trtc::codebook_decode
