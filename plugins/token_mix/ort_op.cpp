#include "common/half.h"
#include "common/ort_adapter.h"
#include "token_mix/contract.h"
#include "token_mix/kernel_cpu.h"

namespace trtc::token_mix
{

namespace
{
//! A matrix that is a weight of the graph is packed once.
struct Memory
{
    OrtCall& call;

    void* workspace(size_t bytes)
    {
        return call.workspace(bytes);
    }

    bool isKept() const
    {
        return call.isConstant(1);
    }

    template <typename Fill>
    void* kept(size_t bytes, Fill const& fill)
    {
        return call.kept(bytes, fill);
    }
};

struct OrtForm
{
    static Contract const& contract()
    {
        return token_mix::contract();
    }

    static Error compute(OrtCall& call)
    {
        Sizes const sizes = sizesOf(call.attributes(), call.shapes());
        dispatchFloat(call.dtype(0),
            [&](auto tag)
            {
                using T = typename decltype(tag)::Type;
                mixTokens(sizes, call.input<T>(0), call.input<void>(1), call.dtype(1), call.output<T>(0), Memory{call},
                    call.parallelFor());
            });
        return {};
    }
};
} // namespace

void registerOrt(OrtRegistry& registry)
{
    registry.add<OrtForm>();
}

} // namespace trtc::token_mix
