#include "attention_score/contract.h"
#include "attention_score/kernel_cpu.h"
#include "common/half.h"
#include "common/ort_adapter.h"

namespace trtc::attention_score
{

namespace
{
struct OrtForm
{
    static Contract const& contract()
    {
        return attention_score::contract();
    }

    static Error compute(OrtCall& call)
    {
        Sizes const sizes = sizesOf(call.attributes(), call.shapes());
        void* const workspace = call.workspace(cpuWorkspaceBytes(sizes));
        dispatchFloat(call.dtype(0),
            [&](auto ofQ)
            {
                dispatchFloat(call.dtype(1),
                    [&](auto ofK)
                    {
                        dispatchFloat(call.dtype(3),
                            [&](auto ofBias)
                            {
                                using Q = typename decltype(ofQ)::Type;
                                using K = typename decltype(ofK)::Type;
                                using Bias = typename decltype(ofBias)::Type;
                                scoreKeys(sizes, call.input<Q>(0), call.input<K>(1), call.input<int64_t>(2),
                                    call.input<Bias>(3), call.input<int64_t>(4), call.output<float>(0), workspace,
                                    call.parallelFor());
                            });
                    });
            });
        return {};
    }
};
} // namespace

void registerOrt(OrtRegistry& registry)
{
    registry.add<OrtForm>();
}

} // namespace trtc::attention_score
