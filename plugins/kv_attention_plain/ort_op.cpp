#include "common/ort_adapter.h"
#include "kv_attention/kernel_cpu.h"
#include "kv_attention_plain/contract.h"

namespace trtc::kv_attention_plain
{

namespace
{
struct OrtForm
{
    static Contract const& contract()
    {
        return kv_attention_plain::contract();
    }

    static Error compute(OrtCall& call)
    {
        namespace cpu = kv_attention::cpu;
        kv_attention::Sizes const sizes = sizesOf(call.attributes(), call.shapes(), call.dtype(1));
        cpu::Cache const keys{call.input<void>(1), nullptr, nullptr, DType::kFLOAT32};
        cpu::Cache const values{call.input<void>(2), nullptr, nullptr, DType::kFLOAT32};
        cpu::Tensors const tensors{call.input<void>(0), call.dtype(0), keys, values, call.input<int64_t>(3),
            call.input<void>(4), call.dtype(4), call.input<int64_t>(5), call.output<void>(0), call.output<float>(1)};
        kv_attention::attendOverCache(
            sizes, tensors, call.workspace(kv_attention::cpuWorkspaceBytes(sizes)), call.parallelFor());
        return {};
    }
};
} // namespace

void registerOrt(OrtRegistry& registry)
{
    registry.add<OrtForm>();
}

} // namespace trtc::kv_attention_plain
