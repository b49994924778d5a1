#include "common/fault.cuh"

#include <atomic>
#include <mutex>

namespace trtc
{

namespace
{
constexpr uint32_t kTAG_SHIFT = 8;
constexpr char const* kWHY[] = {
    "",
    "an index is out of range",
    "the indices are not strictly ascending",
    "an index has a position twice and is no permutation",
    "a position lies outside of the cache",
    "a number is none of the codebook's codes",
    "the codebook's numbers of levels are not whole numbers of 2 to 256, or give more than 2**24 codes",
};

uint32_t* allocateWord() noexcept
{
#ifdef TRTC_EMULATED_CUDA
    static uint32_t sWord = 0;
    return &sWord;
#else
    void* memory = nullptr;
    if (cudaHostAlloc(&memory, sizeof(uint32_t), cudaHostAllocMapped | cudaHostAllocPortable) != cudaSuccess)
    {
        static_cast<void>(cudaGetLastError());
        return nullptr;
    }
    auto* const word = static_cast<uint32_t*>(memory);
    *word = 0;
    return word; // with unified addressing the kernels use the same pointer; it lives as long as the process
#endif
}

std::atomic<uint32_t*> gWord{nullptr};
std::mutex gAllocation;
} // namespace

FaultSlot faultSlot(uint32_t operatorNumber) noexcept
{
    if (gWord.load() == nullptr)
    {
        std::lock_guard<std::mutex> const lock(gAllocation);
        if (gWord.load() == nullptr)
        {
            gWord.store(allocateWord()); // tried again next time if it failed: there may have been no device yet
        }
    }
    return {gWord.load(), (operatorNumber + 1U) << kTAG_SHIFT};
}

bool hasFault() noexcept
{
    uint32_t volatile* const word = gWord.load();
    return word != nullptr && *word != 0U;
}

Error takeFault(std::vector<Contract const*> const& operators)
{
    if (!hasFault())
    {
        return {};
    }
    uint32_t volatile* const word = gWord.load();
    uint32_t const code = *word;
    *word = 0;
    size_t const number = (code >> kTAG_SHIFT) - 1U;
    std::string const name = number < operators.size() ? operators[number]->opType() : "an operator";
    return name + ": " + kWHY[code & ((1U << kTAG_SHIFT) - 1U)] + "; that output was not written.";
}

} // namespace trtc
