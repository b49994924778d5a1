#include "common/ort_adapter.h"
#include "kv_attention/contract.h"
#include "kv_attention/kernel_cpu.h"

namespace trtc::kv_attention
{

namespace
{
struct OrtForm
{
    static Contract const& contract()
    {
        return kv_attention::contract();
    }

    static Error compute(OrtCall& call)
    {
        Sizes const sizes = sizesOf(call.attributes(), call.shapes());
        cpu::Cache const keys{call.input<void>(1), call.input<void>(2), call.input<void>(3), call.dtype(2)};
        cpu::Cache const values{call.input<void>(4), call.input<void>(5), call.input<void>(6), call.dtype(5)};
        cpu::Tensors const tensors{call.input<void>(0), call.dtype(0), keys, values, call.input<int64_t>(7),
            call.input<void>(8), call.dtype(8), call.input<int64_t>(9), call.output<void>(0), call.output<float>(1),
            {call.input<void>(10), call.input<void>(11), call.dtype(10)},
            {call.input<void>(12), call.input<void>(13), call.dtype(10)}, call.input<float>(14)};
        attendOverCache(sizes, tensors, call.workspace(cpuWorkspaceBytes(sizes)), call.parallelFor());
        return {};
    }
};
} // namespace

void registerOrt(OrtRegistry& registry)
{
    registry.add<OrtForm>();
}

} // namespace trtc::kv_attention
