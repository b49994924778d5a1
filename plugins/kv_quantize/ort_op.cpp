#include "common/ort_adapter.h"
#include "kv_quantize/contract.h"
#include "kv_quantize/kernel_cpu.h"

namespace trtc::kv_quantize
{

namespace
{
struct OrtForm
{
    static Contract const& contract()
    {
        return kv_quantize::contract();
    }

    template <typename Scale>
    static void run(OrtCall& call)
    {
        Sizes const sizes = sizesOf(call.attributes(), call.shapes());
        dispatchFloat(call.dtype(0),
            [&](auto tag)
            {
                using T = typename decltype(tag)::Type;
                quantize(sizes, call.input<T>(0), call.output<uint8_t>(0), call.output<Scale>(1), call.output<Scale>(2),
                    call.parallelFor());
            });
    }

    static Error compute(OrtCall& call)
    {
        if (call.attributes().integer("scale_type") == onnxNumber(DType::kFLOAT16))
        {
            run<Half>(call);
        }
        else
        {
            run<float>(call);
        }
        return {};
    }
};
} // namespace

void registerOrt(OrtRegistry& registry)
{
    registry.add<OrtForm>();
}

} // namespace trtc::kv_quantize
