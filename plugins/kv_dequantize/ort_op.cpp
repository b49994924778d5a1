#include "common/ort_adapter.h"
#include "kv_dequantize/contract.h"
#include "kv_dequantize/kernel_cpu.h"

namespace trtc::kv_dequantize
{

namespace
{
struct OrtForm
{
    static Contract const& contract()
    {
        return kv_dequantize::contract();
    }

    template <typename T>
    static void run(OrtCall& call)
    {
        Sizes const sizes = sizesOf(call.attributes(), call.shapes());
        T* const x = call.output<T>(0);
        if (call.dtype(1) == DType::kFLOAT16)
        {
            dequantize(sizes, call.input<uint8_t>(0), call.input<Half>(1), call.input<Half>(2), x, call.parallelFor());
        }
        else
        {
            dequantize(
                sizes, call.input<uint8_t>(0), call.input<float>(1), call.input<float>(2), x, call.parallelFor());
        }
    }

    static Error compute(OrtCall& call)
    {
        int64_t const to = call.attributes().integer("to");
        if (to == onnxNumber(DType::kFLOAT16))
        {
            run<Half>(call);
        }
        else if (to == onnxNumber(DType::kBFLOAT16))
        {
            run<BFloat16>(call);
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

} // namespace trtc::kv_dequantize
