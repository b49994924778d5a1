// Device memory between guard bytes.
#pragma once

#include <cuda_runtime_api.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <vector>

namespace trtc::harness
{

constexpr size_t kGUARD_BYTES = 256U;
constexpr int kGUARD = 0xa5;

inline void must(cudaError_t status, char const* what)
{
    if (status != cudaSuccess)
    {
        throw std::runtime_error(std::string{what} + ": " + cudaGetErrorString(status));
    }
}

class Guarded
{
public:
    explicit Guarded(size_t bytes)
        : mBytes(bytes)
    {
        must(cudaMalloc(&mAll, bytes + 2U * kGUARD_BYTES), "cudaMalloc");
        must(cudaMemset(mAll, kGUARD, bytes + 2U * kGUARD_BYTES), "cudaMemset");
    }

    ~Guarded()
    {
        cudaFree(mAll);
    }

    Guarded(Guarded const&) = delete;
    Guarded& operator=(Guarded const&) = delete;

    void* data() const
    {
        return static_cast<unsigned char*>(mAll) + kGUARD_BYTES;
    }

    void fill(int value)
    {
        if (mBytes > 0U)
        {
            must(cudaMemset(data(), value, mBytes), "cudaMemset");
        }
    }

    void upload(std::vector<unsigned char> const& bytes)
    {
        if (mBytes > 0U)
        {
            must(cudaMemcpy(data(), bytes.data(), mBytes, cudaMemcpyHostToDevice), "cudaMemcpy");
        }
    }

    std::vector<unsigned char> download() const
    {
        std::vector<unsigned char> bytes(mBytes);
        if (mBytes > 0U)
        {
            must(cudaMemcpy(bytes.data(), data(), mBytes, cudaMemcpyDeviceToHost), "cudaMemcpy");
        }
        return bytes;
    }

    bool guardsAreWhole() const
    {
        std::vector<unsigned char> all(mBytes + 2U * kGUARD_BYTES);
        must(cudaMemcpy(all.data(), mAll, all.size(), cudaMemcpyDeviceToHost), "cudaMemcpy");
        auto const isGuard = [](unsigned char byte) { return byte == kGUARD; };
        return std::all_of(all.begin(), all.begin() + kGUARD_BYTES, isGuard)
            && std::all_of(all.end() - kGUARD_BYTES, all.end(), isGuard);
    }

private:
    size_t mBytes;
    void* mAll{nullptr};
};

} // namespace trtc::harness
